"""What changes in the course of a run, and how it is saved and brought back.

It must not know in which order things happen; that is the engine's.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import cattrs
import torch
from torch import Tensor

from prunekit.contracts.events import StageFinished
from prunekit.contracts.schedule import Start
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import full_state, load_full_state, local_shard, shard_like, shard_states
from prunekit.distributed.fsdp import is_fully_sharded
from prunekit.distributed.random_state import random_states, restore_random_states
from prunekit.distributed.ranks import gather_numbers, own_rank
from prunekit.errors import CheckpointError, NotFiniteError, ResumeError
from prunekit.layers.channels.groups import by_parameter
from prunekit.layers.lookup import parameter_name
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.masks.second_moments import lift
from prunekit.masks.weight_files import save_sparse, save_weights
from prunekit.masks.zeroing import MaskApplier
from prunekit.pruning.training_traces import no_traces, tracing
from prunekit.runs.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    remove_older,
    save_checkpoint,
    write_checkpoint,
)
from prunekit.runs.checkpoints.sharded import load_any, save_sharded
from prunekit.runs.config import RunConfig
from prunekit.runs.folder import RunFolder
from prunekit.runs.interruption import Interruption
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.loop import Loop
from prunekit.runs.training.optimizers import in_weights_order


@attrs.define
class RunState:
    """The model, its masks and what has been measured so far.

    Attributes:
        config: what the user asked for.
        prepared: task, model, layers and plan.
        folder: where the run writes.
        hardware: where it computes.
        masks: layer -> mask of the weight's shape, for the layers that have one.
        finished: one record for each finished stage.
        losses: training losses of the epoch under way.
        traces: layer -> what the criterion sums over training steps, of the weight's shape; empty where it asks for
            none.
        skipped: steps of the run that were left out because of a loss or gradient that is no number.
        stop: whether the user has asked to stop.
        began: when the run began, on the clock of ``time.perf_counter``, without the time that it stood still.
        stage_began: when the stage under way began, in seconds of the run.
    """

    config: RunConfig
    prepared: PreparedRun
    folder: RunFolder
    hardware: Hardware
    masks: dict[str, Tensor] = attrs.field(factory=dict)
    finished: list[StageFinished] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    traces: dict[str, Tensor] = attrs.field(factory=dict)
    skipped: int = 0
    stop: Interruption = attrs.field(factory=Interruption)
    began: float = attrs.field(factory=time.perf_counter)
    stage_began: float = 0.0

    @property
    def seeds(self) -> Seeds:
        """The root of all randomness."""
        return Seeds(self.config.seed)

    @property
    def seconds(self) -> float:
        """Wall time of the run, without the time between a stop and its resumption."""
        return time.perf_counter() - self.began

    def take_given(self) -> None:
        """Start from the given masks and weights, and keep them: what resumes the run needs their files no more."""
        given = self.prepared.given
        if not given:
            self._check_nothing_was_given()
            return
        if given.weights is not None:
            load_full_state(self.prepared.network, given.weights)
        self.masks = {name: mask.to(self.hardware.device) for name, mask in given.masks.items()}
        self.save_checkpoint(0, 0, None)

    def _check_nothing_was_given(self) -> None:
        """Refuse to begin a resumed run anew without what it was given: a copy of that is its first checkpoint."""
        if self.config.masks is not None or self.config.weights is not None:
            raise ResumeError(
                f"there is no checkpoint in {self.folder.checkpoints}, so the masks and weights that the run was given "
                "are lost; start it again"
            )

    def begin_traces(self, layers: Iterable[str]) -> None:
        """Forget what training steps did so far, and sum anew from now on, where the criterion asks for it."""
        asks = "training" in self.prepared.make_criterion().needs
        self.traces = no_traces({name: self.prepared.views[name] for name in layers}) if asks else {}

    def tracing(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return the context in which the optimiser's steps are summed."""
        if not self.traces:
            return nullcontext()
        return tracing(self.prepared.make_criterion(), self.prepared.views, self.traces, optimizer)

    def as_masks(self) -> Masks:
        """Return the masks by parameter name, what goes with channels too, with the facts that go into their file."""
        views = self.prepared.views
        asked = {name: density for stage in self.finished for name, density in stage.requested.items()}
        info = {
            "criterion": Path(self.config.criterion.name).name,  # of a file, not where it lies
            "schedule": Path(self.config.schedule.name).name,
            "seed": self.config.seed,
            "asked": {parameter_name(name, views[name]): density for name, density in sorted(asked.items())},
        }
        return Masks(by_parameter(views, self.masks, self.prepared.channel_groups), info)

    def check_finite(self, when: str) -> None:
        """Refuse to go on, or to save, with weights that are infinite or no numbers.

        Of buffers those that are no numbers are refused: attention masks are infinite.

        Raises:
            NotFiniteError: naming the tensor, and what to try.
        """
        model = self.prepared.model
        state, weights = model.state_dict(), {name for name, _ in model.named_parameters(remove_duplicate=False)}
        parts = {name: local_shard(tensor) for name, tensor in state.items()}
        good = (part.isfinite() if name in weights else ~part.isnan() for name, part in parts.items())
        everyone = gather_numbers([bool(part.all()) for part in good])
        for name, *finite in zip(state, *everyone, strict=True):
            if not all(finite):
                raise NotFiniteError(
                    f"{when} {name!r} is not finite; checkpoints so far stay in {self.folder.checkpoints}; "
                    "try a lower rate, more warm-up or clipping (-o training.warmup=0.1 -o training.clip_norm=5)"
                )

    def save_results(self) -> None:
        """Write the masks and the deployed network as they are now; the first rank does."""
        masks, weights = self.as_masks(), full_state(self.prepared.network)
        if own_rank() > 0:
            return
        if self.masks:
            masks.save(self.folder.masks)
        if self.masks and self.config.sparse_model:
            save_sparse(self.folder.model, weights, masks)
        else:
            save_weights(self.folder.model, weights)

    def save_checkpoint(
        self, stage: int, step: int, loop: Loop | None, random: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a checkpoint after ``step`` steps of a stage; without a loop: before the stage begins.

        Of several ranks the first one writes, or each its part of what is spread; all must come here.

        Args:
            stage: its index; the stages before it are finished.
            step: optimiser steps of it that are done.
            loop: with optimiser and scaler.
            random: this rank's ``random_state``, where the generators have moved on since that step.

        Raises:
            CheckpointError: when it cannot be written; what was there stays.
        """
        facts: dict[str, Any] = {
            "finished": cattrs.unstructure(self.finished[:stage]),
            "losses": self.losses,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "stage_began": self.stage_began if step else self.seconds,
            "scaler": loop.scaler.state_dict() if loop else {},
        }
        if loop is not None:
            self._lift_dropped(loop)
        states = random_states(random)
        tensors = {"model": self.prepared.model.state_dict(), "masks": self.masks, "random": states}
        tensors |= {"traces": self.traces} if self.traces else {}
        checkpoint = Checkpoint(stage, step, tensors, loop.optimizer.state_dict() if loop else None, facts)
        if own_rank() == 0:
            self.folder.sync_metrics()  # a checkpoint must not outlive the lines before it
        if is_fully_sharded(self.prepared.model):
            save_sharded(self.folder.checkpoints, checkpoint, self.prepared.training.keep_checkpoints)
        elif own_rank() == 0:
            save_checkpoint(self.folder.checkpoints, checkpoint, self.prepared.training.keep_checkpoints)

    def _lift_dropped(self, loop: Loop) -> None:
        """Give what plays no part one value; else it would tell when masks were last held anew: where a run went on."""
        for parameter, mask in match(self.as_masks().tensors, self.prepared.network).values():
            lift(loop.optimizer, parameter, MaskApplier(mask).local_mask(parameter))

    def restore(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Bring back model, masks and results from the newest good checkpoint.

        Returns:
            The checkpoint (``None`` when the run had not got so far), and what was wrong with newer ones.

        Raises:
            ResumeError: when none can be read, or it is of another network.
        """
        checkpoint, broken = newest_checkpoint(self.folder.checkpoints, partial(load_any, model=self.prepared.model))
        places = gather_numbers([-1, -1] if checkpoint is None else [checkpoint.stage, checkpoint.step])
        for rank, place in enumerate(places):
            if place != places[0]:
                raise CheckpointError(
                    f"rank {rank} finds another checkpoint than rank 0 (stage and step {place}, {places[0]}); "
                    f"{self.folder.checkpoints} must be one folder that all machines see"
                )
        notes = tuple(f"{problem}; going on from the one before" for problem in broken)
        if checkpoint is None:
            return None, notes
        try:
            load_full_state(self.prepared.model, checkpoint.tensors["model"])
            self.masks = {name: mask.to(self.hardware.device) for name, mask in checkpoint.tensors["masks"].items()}
            traces = checkpoint.tensors.get("traces", {})
            weights = {name: self.prepared.views[name].weight for name in traces}
            self.traces = {
                name: shard_like(total, weights[name]).to(self.hardware.device) for name, total in traces.items()
            }
            self.finished = cattrs.structure(checkpoint.facts["finished"], list[StageFinished])
            self.losses = list(checkpoint.facts["losses"])
            self.skipped = checkpoint.facts["skipped"]
            self.began = time.perf_counter() - checkpoint.facts["seconds"]
            self.stage_began = checkpoint.facts["stage_began"]
        except (RuntimeError, KeyError, cattrs.BaseValidationError) as error:
            raise ResumeError(f"the checkpoint in {self.folder.checkpoints} does not fit the run: {error}") from error
        if own_rank() == 0:
            remove_older(self.folder.checkpoints, checkpoint, self.prepared.training.keep_checkpoints)
        return checkpoint, notes

    def restore_loop(self, checkpoint: Checkpoint, loop: Loop) -> None:
        """Bring back optimiser, scaler and random generators in the middle of a stage."""
        assert checkpoint.optimizer is not None
        try:
            states = shard_states(checkpoint.optimizer["state"], loop.optimizer)
            loop.optimizer.load_state_dict({**checkpoint.optimizer, "state": states})
            in_weights_order(loop.optimizer)
            loop.scaler.load_state_dict(checkpoint.facts["scaler"])
            if not restore_random_states(checkpoint.tensors["random"]):  # the run had fewer ranks
                torch.manual_seed(self.seeds.derive("training", checkpoint.stage, own_rank(), checkpoint.step))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"the checkpoint does not fit the optimiser of the task: {error}") from error

    def keep_weights(self, start: Start) -> None:
        """Write the weights that a later stage is to start from; the first rank does."""
        weights = full_state(self.prepared.model)
        if own_rank() == 0:
            write_checkpoint(self._weights_file(start), Checkpoint(0, start.step, {"model": weights}, None, {}))

    def start_weights(self, start: Start, stage: int) -> None:
        """Give the model the weights that a stage starts from."""
        model = self.prepared.model
        if start.kind == "fresh":
            source: Mapping[str, Tensor] = self.prepared.build_model("initial weights", stage).state_dict()
        elif start.kind in {"initial", "step"}:
            source = self._kept_weights(start)
        else:
            return
        load_full_state(model, source)

    def _kept_weights(self, start: Start) -> Mapping[str, Tensor]:
        try:
            return load_checkpoint(self._weights_file(start)).tensors["model"]
        except CheckpointError as error:
            raise ResumeError(f"the weights to start from are lost: {error}; start another run") from error

    def _weights_file(self, start: Start) -> Path:
        return self.folder.checkpoints / f"weights-{start.kind}-{start.step:08d}.safetensors"
