"""Choose the fastest form of a layer by timing its dense and sparse forms on this machine.

The forms run in turns, so that other load on the machine affects all of them alike. A sparse form is judged by the
median of its ratios to the dense time of the same turn and by the ratio of the shortest times, which other load
disturbs least; the worse of the two counts. This module must not know layers.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import attrs

from prunekit.deployment.sparse.sparse_layer import DENSE

# A sparse form must be this much faster, so that after a measurement error of 10 % it takes at most 1.05 of dense.
_MARGIN = 0.95
_SECONDS = 0.25  # of each layer at each batch size
_FEWEST_TURNS, _MOST_TURNS = 5, 25
_PATIENCE = 10 * _SECONDS  # seconds after which two turns are enough
_HOPELESS = 2.0  # a form above this ratio in both of the first two turns is dropped


@attrs.frozen
class FormTiming:
    """Time of one layer in each form at one batch size.

    Attributes:
        batch_size: samples in a batch of the model.
        size: samples in an input of the layer; for a linear layer its rows, so each token counts.
        form: the chosen form.
        milliseconds: form -> median time in ms, including "dense".
        ratios: sparse form -> its time / the dense time, as judged.
    """

    batch_size: int
    size: int
    form: str
    milliseconds: Mapping[str, float]
    ratios: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """Time in the chosen form / dense time."""
        return self.ratios.get(self.form, 1.0)


def measure(calls: Mapping[str, Callable[[], object]], batch_size: int, size: int) -> FormTiming:
    """Time the forms of a layer in turns and choose one.

    Args:
        calls: form -> call to time, including "dense".
        batch_size: samples in a batch of the model.
        size: samples in the input of the layer.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {form: [] for form in calls}
    began = time.perf_counter()
    for turn in range(_MOST_TURNS):
        for form, call in calls.items():
            if turn > 1 and min(_ratios(times, form)) > _HOPELESS:
                continue
            call()  # untimed: the first call after another form waits for threads to wake up
            start = time.perf_counter()
            call()
            times[form].append((time.perf_counter() - start) * 1e3)
        taken = time.perf_counter() - began
        if (turn + 1 >= _FEWEST_TURNS and taken > _SECONDS) or (turn > 0 and taken > _PATIENCE):
            break
    ratios = {
        form: max(statistics.median(_ratios(times, form)), min(times[form]) / min(times[DENSE]))
        for form in calls
        if form != DENSE
    }
    best = min(ratios, key=ratios.__getitem__)
    form = best if ratios[best] <= _MARGIN else DENSE
    medians = {form: statistics.median(values) for form, values in times.items()}
    return FormTiming(batch_size, size, form, medians, ratios)


def _ratios(times: Mapping[str, list[float]], form: str) -> list[float]:
    return [own / dense for own, dense in zip(times[form], times[DENSE], strict=False)]
