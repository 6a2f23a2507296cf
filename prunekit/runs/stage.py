"""Training one stage: steps, mask updates in between, looks at the loss, checkpoints, notices.

It must not know the other stages.
"""

import math
import time
from contextlib import nullcontext
from functools import partial

import attrs
import pluggy
import torch
from torch import Tensor

from prunekit.contracts import events
from prunekit.contracts.schedule import MaskUpdate, Stage, Start
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import local_shard
from prunekit.distributed.ranks import rank_count, sum_over_ranks
from prunekit.errors import NotFiniteError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks
from prunekit.pruning.rank_agreement import check_agreement
from prunekit.pruning.training_traces import forget_dropped
from prunekit.pruning.update import choose_masks
from prunekit.runs.emergency_checkpoint import EmergencyCheckpoint
from prunekit.runs.interruption import abandonable, obey
from prunekit.runs.state import RunState
from prunekit.runs.training.loop import Loop, rate_factor
from prunekit.runs.training.showing import BatchShower


@attrs.define
class StageTraining:
    """One stage of a run.

    Attributes:
        state: the run.
        hook: notified of steps, epochs and mask updates.
        index: number of the stage, from 0.
        stage: what is planned.
        steps: optimiser steps of the stage.
        epoch_length: optimiser steps of an epoch.
        rewind_points: steps of this stage after which a later stage wants the weights, -> their name.
    """

    state: RunState
    hook: pluggy.HookRelay
    index: int
    stage: Stage
    steps: int
    epoch_length: int
    rewind_points: dict[int, Start] = attrs.field(factory=dict)
    _unread: list[Tensor] = attrs.field(factory=list, init=False)
    _agreed: bool = attrs.field(default=False, init=False)
    _since: float = attrs.field(factory=time.perf_counter, init=False)

    def first_updates(self) -> None:
        """Carry out the updates at the start, on the weights that the stage before left."""
        self._update_at(0, None)

    def rescue(self, loop: Loop) -> EmergencyCheckpoint:
        """Return what saves the stage when it ends before its time."""
        return EmergencyCheckpoint(self.state, self.index, loop, partial(self._read_losses, loop=loop))

    def train(self, loop: Loop, held: Held[Masks], first: int, rescue: EmergencyCheckpoint) -> None:
        """Take the steps from ``first`` on.

        Raises:
            KeyboardInterrupt: when the user has asked to stop; ``rescue`` may save.
            NotFiniteError: when a loss is infinite or no number; checkpoints stay.
        """
        rescue.mark(first)
        self._since = time.perf_counter()
        listened = bool(self.hook.prunekit_step_finished.get_hookimpls())
        # After a step little is done and less is called: a small network's takes a few hundred microseconds.
        settings, stop = self.state.prepared.training, self.state.stop
        parts = loop.read(self._data_seeds, self.epoch_length, first, self.steps)
        step = first
        while step < self.steps:
            if step > 0:
                self._update_at(step, held, rescue)
            end = self._segment_end(step)
            factors = [self._rate(number) for number in range(step, end)]
            for loss in loop.steps(parts, factors):
                step += 1
                self._unread.append(loss)
                if listened:
                    self.hook.prunekit_step_finished(event=events.StepFinished(self.index, step, self.steps))
                if step == end or len(self._unread) >= settings.check_every:
                    self._after(step, loop)
                rescue.mark(step)  # not before: an epoch that is not told yet would never be
                if self.state.skipped > settings.skip_bad_steps:
                    self._refuse_skipped(step)
                if stop.request is not None:
                    self._obey(step, rescue)
        if self.steps > 0:
            self._update_at(self.steps, held, rescue)

    def _refuse_skipped(self, step: int) -> None:
        most = self.state.prepared.training.skip_bad_steps
        raise NotFiniteError(
            f"{self.state.skipped} steps were left out for a loss or gradient that is no number, the last by step "
            f"{step} of {self.steps} in stage {self.stage.name!r}, and training.skip_bad_steps is {most}; look at "
            "the data, or try a lower rate, more warm-up or clipping (-o training.clip_norm=5)"
        )

    def _obey(self, step: int, rescue: EmergencyCheckpoint) -> None:
        """Raise ``KeyboardInterrupt`` after a step, once all ranks know that the user has asked to stop."""
        # They have heard of it at a look at the loss; of a request that has come since, this one alone.
        if rank_count() == 1 or self._agreed:
            rescue.mark(step, thoroughly=True)
            self.state.stop.obey()

    @property
    def _data_seeds(self) -> Seeds:
        return Seeds(self.state.seeds.derive("data", self.index))

    def _segment_end(self, step: int) -> int:
        """Return where the next thing happens: a mask update, a checkpoint, the end of the epoch or of the stage."""
        every = (self.epoch_length, self.state.prepared.training.checkpoint_every or self.steps)
        once = (*map(self._due, self.stage.updates), *self.rewind_points)
        return min([self.steps, *((step // n + 1) * n for n in every), *(due for due in once if due > step)])

    def _due(self, update: MaskUpdate) -> int:
        return round(update.at * self.steps)

    def _rate(self, step: int) -> float:
        settings = self.state.prepared.training
        # What starts from new or from early weights is trained, not re-trained.
        retrains = (self.index > 0 or self.state.config.freeze_masks) and self.stage.start.kind == "previous"
        scale = self.stage.rate if self.stage.rate is not None else settings.retraining_rate if retrains else 1.0
        return scale * rate_factor(settings, step, self.steps)

    def _after(self, step: int, loop: Loop) -> None:
        """Do what is due after a step; reading losses waits for the device, so it is done seldom."""
        settings = self.state.prepared.training
        ends_epoch = step % self.epoch_length == 0 or step == self.steps
        wanted = settings.checkpoint_every and step % settings.checkpoint_every == 0
        # The end is saved when all is done there, and before masks change: what then fails is not to cost the stage.
        saves = wanted if step < self.steps else any(self._due(update) == step for update in self.stage.updates)
        rewinds = step in self.rewind_points
        if ends_epoch or saves or rewinds or len(self._unread) >= settings.check_every:
            self._read_losses(step, loop)
        if ends_epoch:
            self._epoch_finished(step, loop)
        if rewinds:
            self.state.keep_weights(self.rewind_points[step])
        if saves:
            self.state.check_finite(f"after step {step} of stage {self.stage.name!r}")
            self.state.save_checkpoint(self.index, step, loop)

    def _read_losses(self, step: int, loop: Loop) -> None:
        if not self._unread:
            return
        # The request rides along: all ranks stop after the same step, and none waits for the others more often.
        asked = torch.full_like(self._unread[0], self.state.stop.request is not None)
        *losses, asked_by = sum_over_ranks(torch.stack([*self._unread, asked])).tolist()
        if asked_by > 0:
            self._agreed = True
            self.state.stop.join()
        left_out = [number for number, loss in enumerate(losses, step - len(losses) + 1) if not math.isfinite(loss)]
        if left_out and not self.state.prepared.training.skip_bad_steps:
            number = left_out[0]
            loss = losses[number - step - 1]
            rate = loop.set_rate(self._rate(number - 1))
            raise NotFiniteError(
                f"the loss is {loss} at step {number} of {self.steps} in stage {self.stage.name!r}, learning rate "
                f"{rate:.3g}; checkpoints so far stay in {self.state.folder.checkpoints}; "
                "try a lower rate, more warm-up or clipping (-o training.warmup=0.1 -o training.clip_norm=5)"
            )
        self._unread.clear()  # not before: whoever reads again is to find the same
        self.state.skipped += len(left_out)
        self.state.losses += filter(math.isfinite, losses)

    def _epoch_finished(self, step: int, loop: Loop) -> None:
        losses, self.state.losses = self.state.losses, []
        now = time.perf_counter()
        event = events.EpochFinished(
            stage=self.index,
            epoch=math.ceil(step / self.epoch_length),
            step=step,
            steps=self.steps,
            loss=math.fsum(losses) / len(losses) if losses else math.nan,
            learning_rate=loop.optimizer.param_groups[0]["lr"],
            seconds=now - self._since,
            skipped=self.state.skipped,
        )
        self._since = now
        self.hook.prunekit_epoch_finished(event=event)

    def _update_at(self, step: int, held: Held[Masks] | None, rescue: EmergencyCheckpoint | None = None) -> None:
        for number, update in enumerate(self.stage.updates):
            if self._due(update) == step:
                self._update(number, update, step, held, rescue)

    def _update(
        self, number: int, update: MaskUpdate, step: int, held: Held[Masks] | None, rescue: EmergencyCheckpoint | None
    ) -> None:
        """Choose new masks and hold them from now on."""
        began = time.perf_counter()
        state, prepared = self.state, self.state.prepared
        limit = prepared.training.calibration_batches
        shower = BatchShower(
            prepared.task, prepared.model, state.hardware, self._data_seeds, limit, partial(obey, state.stop)
        )
        whole = held.paused() if held is not None else nullcontext()
        with abandonable(state.stop), whole, state.hardware.products(exact=True):
            chosen = choose_masks(
                prepared.network,
                prepared.views,
                update,
                state.masks,
                prepared.make_criterion,
                shower.evidence(prepared.network, state.traces),
                Seeds(state.seeds.derive("update", self.index, number)),
                prepared.channel_groups,
            )
        check_agreement(chosen)
        if rescue is not None:
            rescue.lose()
        with torch.no_grad():
            for name, weight in chosen.repaired.items():
                local_shard(prepared.views[name].weight).copy_(local_shard(weight))
        forget_dropped(state.traces, chosen.pruned)
        # What is dropped and grown in one update starts from zero like everything that grows.
        for masks in (chosen.pruned, chosen.masks) if update.grow is not None else (chosen.masks,):
            state.masks |= masks
            if held is not None:
                held.update(state.as_masks())
            else:
                state.as_masks().apply(prepared.network)
        event = events.MasksUpdated(self.index, step, chosen.layers, time.perf_counter() - began)
        self.hook.prunekit_masks_updated(event=event)
