"""What the engine tells plugins: one frozen record per notification. Plain data, no live objects."""

from collections.abc import Mapping
from pathlib import Path

import attrs

from prunekit.contracts.schedule import Plan
from prunekit.contracts.task import Evaluation


@attrs.frozen
class RunStarted:
    """A run begins, or goes on.

    Attributes:
        folder: where the run writes.
        headline: one line: network, weights, data, device.
        plan: all stages.
        steps: optimiser steps of each stage.
        resumed_at: (stage, step) of the checkpoint that the run goes on from, or ``None``.
        notes: what the user should know, one line each, for example a broken checkpoint passed over.
    """

    folder: Path
    headline: str
    plan: Plan
    steps: tuple[int, ...]
    resumed_at: tuple[int, int] | None
    notes: tuple[str, ...] = ()


@attrs.frozen
class StageStarted:
    """A stage begins (or goes on at ``step``)."""

    index: int
    name: str
    steps: int
    step: int


@attrs.frozen
class LayerUpdate:
    """What a mask update did to one layer.

    Attributes:
        asked: density asked for.
        kept: connections kept.
        weights: connections there are.
        mean_kept_score: mean score of the kept connections, as the criterion scored them; NaN where all came back
            and nothing was scored.
        mean_score: mean score of all connections, likewise.
    """

    asked: float
    kept: int
    weights: int
    mean_kept_score: float
    mean_score: float


@attrs.frozen
class MasksUpdated:
    """Masks were changed and are held from now on."""

    stage: int
    step: int
    layers: Mapping[str, LayerUpdate]
    seconds: float


@attrs.frozen
class StepFinished:
    """One optimiser step is done. Sent only when a plugin listens."""

    stage: int
    step: int
    steps: int


@attrs.frozen
class EpochFinished:
    """One pass over the training batches is done, or the stage's last part of one.

    Attributes:
        epoch: 1, 2, ... within the stage.
        loss: mean training loss over the epoch.
        learning_rate: of the first parameter group, at the last step.
        seconds: wall time since the last ``EpochFinished``.
        skipped: steps of the run so far that were left out for a loss or gradient that is no number.
    """

    stage: int
    epoch: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    skipped: int = 0


@attrs.frozen
class StageFinished:
    """A stage is trained, evaluated and saved.

    Attributes:
        asked: layer -> density, of the layers that this stage changed.
        kept: layer -> connections kept, of all layers.
        weights: layer -> connections there are.
        evaluation: figures on the test data.
        seconds: wall time of the stage.
    """

    index: int
    name: str
    asked: Mapping[str, float]
    kept: Mapping[str, int]
    weights: Mapping[str, int]
    evaluation: Evaluation
    seconds: float

    @property
    def compression(self) -> float:
        """Weights left / prunable weights (no biases)."""
        return sum(self.kept.values()) / sum(self.weights.values())


@attrs.frozen
class RunFinished:
    """All stages are done; ``stages`` has one record for each, those before a resume too."""

    folder: Path
    stages: tuple[StageFinished, ...]
    seconds: float


@attrs.frozen
class RunStopped:
    """The run ends before its last stage is done; what is saved stays.

    Attributes:
        folder: where the run wrote.
        reason: the error in words.
    """

    folder: Path
    reason: str
