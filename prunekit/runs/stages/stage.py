"""Train one stage: steps, mask updates between them, readings of the loss, checkpoints, notifications.

It must not know the other stages.
"""

import math
import time

import attrs

from prunekit.contracts import events
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks
from prunekit.runs.active_run import ActiveRun, check_finite
from prunekit.runs.run_store import keep_weights, save_progress
from prunekit.runs.stages.emergency_checkpoint import EmergencyCheckpoint
from prunekit.runs.stages.losses import LossReader
from prunekit.runs.stages.mask_updates import update_masks
from prunekit.runs.stages.stage_plan import PlannedStage
from prunekit.runs.training.loop import Loop


@attrs.define
class StageTraining:
    """The training of one stage.

    Attributes:
        run: the run.
        planned: its plan in steps.
        loop: takes the steps.
        losses: reads their losses.
        emergency: saves the last step when the stage ends early.
    """

    run: ActiveRun
    planned: PlannedStage
    loop: Loop
    losses: LossReader
    emergency: EmergencyCheckpoint
    _epoch_began: float = attrs.field(factory=time.perf_counter, init=False)

    def train(self, held: Held[Masks], first: int) -> None:
        """Take the steps after the first ``first`` ones.

        Args:
            held: holds the masks.
            first: steps that are already done.

        Raises:
            KeyboardInterrupt: when the user has requested a stop; ``emergency`` may save.
            NotFiniteError: when a loss is NaN or infinite; checkpoints are kept.
        """
        self.emergency.mark(first)
        self._epoch_began = time.perf_counter()
        run, planned = self.run, self.planned
        notifies = bool(run.hook.prunekit_step_finished.get_hookimpls())
        shares = self.loop.read(run.data_seeds(planned.index), planned.epoch_length, first, planned.steps)
        # A step of a small network takes a few hundred microseconds, so little is called after each.
        step = first
        while step < planned.steps:
            if step > 0:
                self._update_masks(step, held)
            end = planned.segment_end(step)
            factors = [planned.rate_factor(number) for number in range(step, end)]
            for loss in self.loop.steps(shares, factors):
                step += 1
                self.losses.add(loss)
                if notifies:
                    event = events.StepFinished(planned.index, step, planned.steps)
                    run.hook.prunekit_step_finished(event=event)
                if step == end or self.losses.is_due():
                    self._after(step)
                self.emergency.mark(step)  # after the epoch was reported: a resumed run would not report it
                if run.state.skipped:
                    self.losses.check_skipped(step)
                if run.interruption.request is not None:
                    self._stop_if_agreed(step)
        if planned.steps > 0:
            self._update_masks(planned.steps, held)

    def _update_masks(self, step: int, held: Held[Masks]) -> None:
        update_masks(self.run, self.planned, step, held, self.emergency.invalidate)

    def _stop_if_agreed(self, step: int) -> None:
        """Stop after a step if all ranks know of the request; a later request waits for the next reading of losses."""
        if self.losses.stop_is_agreed:
            self.emergency.mark(step, thoroughly=True)
            self.run.interruption.raise_if_requested()

    def _after(self, step: int) -> None:
        """Do what is due after a step."""
        planned = self.planned
        ends_epoch, saves, rewinds = planned.ends_epoch(step), planned.saves_after(step), step in planned.rewind_points
        if ends_epoch or saves or rewinds or self.losses.is_due():
            self.losses.read(step)
        if ends_epoch:
            self._finish_epoch(step)
        if rewinds:
            keep_weights(self.run, planned.rewind_points[step])
        if saves:
            check_finite(self.run, f"after step {step} of stage {planned.name!r}")
            save_progress(self.run, planned.index, step, self.loop)

    def _finish_epoch(self, step: int) -> None:
        state, planned = self.run.state, self.planned
        losses, state.losses = state.losses, []
        now = time.perf_counter()
        event = events.EpochFinished(
            stage=planned.index,
            epoch=math.ceil(step / planned.epoch_length),
            step=step,
            steps=planned.steps,
            loss=math.fsum(losses) / len(losses) if losses else math.nan,
            learning_rate=self.loop.optimizer.param_groups[0]["lr"],
            seconds=now - self._epoch_began,
            skipped=state.skipped,
        )
        self._epoch_began = now
        self.run.hook.prunekit_epoch_finished(event=event)
