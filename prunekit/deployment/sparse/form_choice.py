"""Measuring dense against sparse, once, on this machine, and keeping the faster.

The calls take turns, so that whatever else the machine does hits all alike. A sparse form is judged by the median of
its ratios to the dense time of the same turn, and by the ratio of the shortest times, which others disturb least; the
worse of the two counts. This module must not know layers.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import attrs

from prunekit.deployment.sparse.sparse_layer import DENSE

# A form has to win by this much, so that an error of a tenth leaves the layer within 1.05 of dense.
_MARGIN = 0.95
_SECONDS = 0.25  # of each layer at each batch size
_FEWEST_TURNS, _MOST_TURNS = 5, 25
_PATIENCE = 10 * _SECONDS  # where turns are so long that the fewest take longer, two will do
_HOPELESS = 2.0  # a form that is slower than this twice is not measured again


@attrs.frozen
class Timing:
    """What a layer takes at one batch size.

    Attributes:
        batch_size: of the model's inputs.
        size: samples that the layer gets: of a linear layer rows, so tokens count.
        form: the one chosen.
        milliseconds: form -> median; "dense" is one of them.
        ratios: sparse form -> its time / the dense time, as judged.
    """

    batch_size: int
    size: int
    form: str
    milliseconds: Mapping[str, float]
    ratios: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """The time in the form chosen / the dense time."""
        return self.ratios.get(self.form, 1.0)


def measure(calls: Mapping[str, Callable[[], object]], batch_size: int, size: int) -> Timing:
    """Time calls in turns and choose.

    Args:
        calls: form -> what to time; "dense" is one of them.
        batch_size: of the model's inputs.
        size: of the layer's.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {form: [] for form in calls}
    began = time.perf_counter()
    for turn in range(_MOST_TURNS):
        for form, call in calls.items():
            if turn > 1 and min(_ratios(times, form)) > _HOPELESS:
                continue
            call()  # the first one after another form's waits for threads that sleep or serve that form
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
    return Timing(batch_size, size, form, medians, ratios)


def _ratios(times: Mapping[str, list[float]], form: str) -> list[float]:
    return [own / dense for own, dense in zip(times[form], times[DENSE], strict=False)]
