"""The changing state of a run, except for the weights of its model.

It must not know how it is saved, or in which order things happen.
"""

import time

import attrs
from torch import Tensor

from prunekit.contracts.events import StageFinished


@attrs.define
class RunState:
    """Masks, results and counters of a run.

    Attributes:
        masks: layer -> mask of the weight's shape, for the layers that have one.
        finished: one record for each finished stage.
        losses: training losses of the current epoch.
        traces: layer -> what the criterion sums over training steps, of the weight's shape; empty if it sums nothing.
        skipped: steps of the run that were skipped because of a non-finite loss or gradient.
        began: start of the run on the clock of ``time.perf_counter``, moved forward by the time that it was stopped.
        stage_began: start of the current stage, in seconds of the run.
    """

    masks: dict[str, Tensor] = attrs.field(factory=dict)
    finished: list[StageFinished] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    traces: dict[str, Tensor] = attrs.field(factory=dict)
    skipped: int = 0
    began: float = attrs.field(factory=time.perf_counter)
    stage_began: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of the run, without the time between a stop and its resumption."""
        return time.perf_counter() - self.began
