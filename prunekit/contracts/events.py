"""What the engine reports to listeners: one frozen record for each notification, plain data without live objects.

All indices of stages count from 0, and so does ``step``, the number of optimiser steps of the stage that are done.
Epochs count from 1. Layers are named by their module in the deployed network. Densities are kept / total, in (0, 1].
Times are seconds of wall time.
"""

from collections.abc import Mapping
from pathlib import Path

import attrs

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.schedule import Plan


@attrs.frozen
class RunStarted:
    """A run starts or resumes.

    Attributes:
        folder: the run folder, to which all files of the run are written.
        headline: one line: network, weights, data, device.
        plan: the stages of the run, in order.
        steps: optimiser steps of each stage of the plan.
        resumed_at: (stage, steps of it that are done) of the checkpoint the run resumes from; ``None``: a new run. A
            stage equal to ``len(plan.stages)`` means that all are done.
        notes: what the user should know, one line each, for example that a damaged checkpoint was skipped.
    """

    folder: Path
    headline: str
    plan: Plan
    steps: tuple[int, ...]
    resumed_at: tuple[int, int] | None
    notes: tuple[str, ...] = ()


@attrs.frozen
class StageStarted:
    """A stage starts, or resumes at ``step``.

    Attributes:
        index: the stage's index in the plan, from 0.
        name: the stage's name in the plan.
        steps: optimiser steps of the whole stage.
        step: steps of the stage that are done: 0, or those before the checkpoint.
    """

    index: int
    name: str
    steps: int
    step: int


@attrs.frozen
class LayerUpdate:
    """The result of a mask update in one layer.

    Attributes:
        requested: the density that the plan requests, in (0, 1].
        kept: number of connections that the new mask keeps.
        weights: number of connections of the layer, without biases.
        mean_kept_score: mean of the criterion's finite scores over the kept connections; NaN where every connection
            was let back without scoring.
        mean_score: the same mean over all connections of the layer.
    """

    requested: float
    kept: int
    weights: int
    mean_kept_score: float
    mean_score: float


@attrs.frozen
class MasksUpdated:
    """New masks are in force.

    Attributes:
        stage: the stage's index in the plan, from 0.
        step: optimiser steps of the stage done before the update; 0: before the first.
        layers: layer name -> result, for the layers of this update.
        seconds: wall time of the update: observing, scoring and selecting.
    """

    stage: int
    step: int
    layers: Mapping[str, LayerUpdate]
    seconds: float


@attrs.frozen
class StepFinished:
    """One optimiser step is done. Sent only when a plugin listens.

    Attributes:
        stage: the stage's index in the plan, from 0.
        step: optimiser steps of the stage that are done, with this one: 1 after the first.
        steps: optimiser steps of the whole stage.
    """

    stage: int
    step: int
    steps: int


@attrs.frozen
class EpochFinished:
    """One pass over the training batches is done; the last one of a stage may be incomplete.

    Attributes:
        stage: the stage's index in the plan, from 0.
        epoch: the epoch's number within the stage, from 1.
        step: optimiser steps of the stage that are done.
        steps: optimiser steps of the whole stage.
        loss: mean training loss over the epoch's steps.
        learning_rate: rate of the optimiser's first parameter group at the last step.
        seconds: wall time since the last ``EpochFinished``.
        skipped: steps of the run so far that were skipped for a non-finite loss or gradient.
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

    A listener that draws the primary figure over the weights left of each stage:

        @prunekit.hookimpl
        def prunekit_stage_finished(self, event):
            self.curve.append((event.weights_left, event.evaluation.value))

    Attributes:
        index: the stage's index in the plan, from 0.
        name: the stage's name in the plan.
        requested: layer name -> density in (0, 1], for the layers whose masks this stage changed.
        kept: layer name -> number of connections kept, for all prunable layers.
        weights: layer name -> number of connections without biases, for all prunable layers.
        evaluation: the task's evaluation at the end of the stage; ``evaluation.value`` is the primary figure.
        seconds: wall time of the stage, with that before a resume.
    """

    index: int
    name: str
    requested: Mapping[str, float]
    kept: Mapping[str, int]
    weights: Mapping[str, int]
    evaluation: Evaluation
    seconds: float

    @property
    def weights_left(self) -> float:
        """Weights left / prunable weights, no biases: the paper's compression ratio."""
        return sum(self.kept.values()) / sum(self.weights.values())


@attrs.frozen
class RunFinished:
    """All stages are done.

    Attributes:
        folder: the run folder.
        stages: one record for each stage of the plan, in order, those before a resume too.
        seconds: wall time of the run, with that before a resume.
    """

    folder: Path
    stages: tuple[StageFinished, ...]
    seconds: float


@attrs.frozen
class RunStopped:
    """The run ends before its last stage is done; its checkpoints are kept.

    Attributes:
        folder: the run folder.
        reason: the error that ended the run: its type and its message.
    """

    folder: Path
    reason: str
