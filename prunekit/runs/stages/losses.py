"""Losses of the steps of a stage, read from the device a few at a time, because reading waits for the device.

It must not know masks or checkpoints.
"""

import math

import attrs
import torch
from torch import Tensor

from prunekit.distributed.ranks import rank_count, sum_over_ranks
from prunekit.errors import NotFiniteError
from prunekit.runs.active_run import STABILITY_ADVICE, ActiveRun
from prunekit.runs.stages.stage_plan import PlannedStage
from prunekit.runs.training.loop import Loop


@attrs.define
class LossReader:
    """Collects losses on the device and reads them when they are due.

    Attributes:
        run: gets the losses.
        planned: the stage.
        loop: takes the steps.
    """

    run: ActiveRun
    planned: PlannedStage
    loop: Loop
    _unread: list[Tensor] = attrs.field(factory=list, init=False)
    _stop_is_agreed: bool = attrs.field(default=False, init=False)

    @property
    def stop_is_agreed(self) -> bool:
        """Whether all ranks know of a request to stop."""
        return self._stop_is_agreed or rank_count() == 1

    def add(self, loss: Tensor) -> None:
        """Take this rank's share of the loss of the next step, on the device."""
        self._unread.append(loss)

    def is_due(self) -> bool:
        """Return whether enough losses are waiting to be read."""
        return len(self._unread) >= self.planned.settings.check_every

    def read(self, step: int) -> None:
        """Read the losses of the steps up to ``step``; all ranks must call it.

        Raises:
            NotFiniteError: a loss that is NaN or infinite, unless such steps may be skipped.
        """
        if not self._unread:
            return
        interruption, state = self.run.interruption, self.run.state
        # The request to stop travels with the losses: all ranks stop after the same step, without waiting more often.
        requested = torch.full_like(self._unread[0], interruption.request is not None)
        *losses, requests = sum_over_ranks(torch.stack([*self._unread, requested])).tolist()
        if requests > 0:
            self._stop_is_agreed = True
            interruption.adopt_request()
        skipped = [number for number, loss in enumerate(losses, step - len(losses) + 1) if not math.isfinite(loss)]
        if skipped and not self.planned.settings.skip_bad_steps:
            self._refuse(losses[skipped[0] - step - 1], skipped[0])
        self._unread.clear()  # last: reading again after an error must find the same
        state.skipped += len(skipped)
        state.losses += filter(math.isfinite, losses)

    def check_skipped(self, step: int) -> None:
        """Refuse to continue after more skipped steps than allowed.

        Raises:
            NotFiniteError: saying how many steps were skipped.
        """
        skipped, most = self.run.state.skipped, self.planned.settings.skip_bad_steps
        if skipped > most:
            raise NotFiniteError(
                f"skipped {skipped} steps with a non-finite loss or gradient (by step {step} of {self.planned.steps} "
                f"in stage {self.planned.name!r}), more than training.skip_bad_steps = {most} allows; check the data, "
                f"or {STABILITY_ADVICE}"
            )

    def _refuse(self, loss: float, step: int) -> None:
        rate = self.loop.set_rate(self.planned.rate_factor(step - 1))
        raise NotFiniteError(
            f"the loss is {loss} at step {step} of {self.planned.steps} in stage {self.planned.name!r}, learning rate "
            f"{rate:.3g}; earlier checkpoints are kept in {self.run.folder.checkpoints}; {STABILITY_ADVICE}"
        )
