"""The plan of a stage in steps: its length, mask updates, checkpoints and learning rates.

It must not know models or data.
"""

from collections.abc import Mapping

import attrs

from prunekit.contracts.schedule import MaskUpdate, Plan, Stage, Start
from prunekit.contracts.training import Training
from prunekit.errors import ConfigError
from prunekit.runs.training.loop import rate_factor


@attrs.frozen
class PlannedStage:
    """One stage with its length in steps.

    Attributes:
        index: number of the stage, from 0.
        stage: its name, budget, start and mask updates.
        steps: optimiser steps of the stage.
        epoch_length: optimiser steps of an epoch.
        settings: how to train.
        rate: factor on the learning rates of the whole stage.
        rewind_points: step after which a later stage needs the weights -> the name of those weights.
    """

    index: int
    stage: Stage
    steps: int
    epoch_length: int
    settings: Training
    rate: float
    rewind_points: Mapping[int, Start] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.stage.name

    def updates_at(self, step: int) -> list[tuple[int, MaskUpdate]]:
        """Return the mask updates after ``step`` steps, each with its number within the stage."""
        return [(number, update) for number, update in enumerate(self.stage.updates) if self._due(update) == step]

    def segment_end(self, step: int) -> int:
        """Return the next step with a mask update, checkpoint or rewind point, or an end of the epoch or stage."""
        every = (self.epoch_length, self.settings.checkpoint_every or self.steps)
        once = (*map(self._due, self.stage.updates), *self.rewind_points)
        return min([self.steps, *((step // n + 1) * n for n in every), *(due for due in once if due > step)])

    def ends_epoch(self, step: int) -> bool:
        """Return whether an epoch ends after ``step`` steps; the last one of a stage may be short."""
        return step % self.epoch_length == 0 or step == self.steps

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is written after ``step`` steps."""
        if step < self.steps:
            return bool(self.settings.checkpoint_every) and step % self.settings.checkpoint_every == 0
        # The end of a stage is saved when the stage is complete. If masks change there first, it is also saved before
        # they do, so that a failure in between does not lose the stage.
        return bool(self.updates_at(step))

    def rate_factor(self, step: int) -> float:
        """Return the factor on the base learning rates at ``step`` (0 .. steps - 1)."""
        return self.rate * rate_factor(self.settings, step, self.steps)

    def _due(self, update: MaskUpdate) -> int:
        return round(update.at * self.steps)


def planned_stages(plan: Plan, settings: Training, epoch_length: int, *, pruned: bool = False) -> list[PlannedStage]:
    """Return the stages of a plan with their lengths in steps.

    Args:
        plan: checked against the layers.
        settings: how to train.
        epoch_length: optimiser steps of an epoch.
        pruned: whether the network is pruned from the start, so that the first stage retrains it.

    Raises:
        ConfigError: a stage that starts from a step that no earlier stage reaches.
    """
    found: list[PlannedStage] = []
    for index, stage in enumerate(plan.stages):
        done = sum(earlier.steps for earlier in found)
        if stage.start.kind == "step" and not 0 < stage.start.step <= done:
            raise ConfigError(
                f"stage {stage.name!r} starts from step {stage.start.step}, but the stages before it have only {done} "
                "steps; choose an earlier step or a larger budget"
            )
        steps = stage.budget.steps(epoch_length)
        wanted = {later.start.step - done: later.start for later in plan.stages if later.start.kind == "step"}
        points = {step: start for step, start in wanted.items() if 0 < step <= steps}
        # Training from new or early weights is not retraining.
        retrains = (index > 0 or pruned) and stage.start.kind == "previous"
        rate = stage.rate if stage.rate is not None else settings.retraining_rate if retrains else 1.0
        found.append(PlannedStage(index, stage, steps, epoch_length, settings, rate, points))
    return found
