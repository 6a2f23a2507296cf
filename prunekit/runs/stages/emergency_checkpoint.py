"""A checkpoint of the last completed step, written when a stage ends early.

The step can be saved as long as weights, masks and buffers are still as they were after it: also while the batches of
the next step are read, in statistics and in evaluation. This module must not know why the stage ends.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunekit.distributed.failure import all_ranks_fail_at
from prunekit.distributed.process_group import is_lost_contact
from prunekit.distributed.random_state import random_state, torch_state
from prunekit.distributed.ranks import gather_numbers
from prunekit.distributed.torch_internals import write_count
from prunekit.errors import CheckpointError, PrunekitError
from prunekit.runs.active_run import ActiveRun, check_finite
from prunekit.runs.fault_messages import explained
from prunekit.runs.run_store import save_progress
from prunekit.runs.training.loop import Loop


@attrs.define
class _StepRecord:
    """The moment after a step: what identifies it, and whether the model is still as it was then.

    Attributes:
        model: its buffers are watched.
        step: completed steps; ``None`` when the model has changed since.
        random: the random state of that moment.
    """

    model: nn.Module
    step: int | None = None
    random: dict[str, Tensor] = attrs.field(factory=random_state)
    _stepping: bool = False
    _buffers: list[Tensor] = attrs.field(init=False)
    _writes: int = 0

    def __attrs_post_init__(self) -> None:
        self._buffers = self._find_buffers()

    def take(self, step: int, *, thoroughly: bool) -> None:
        self.step = step
        self.random |= random_state() if thoroughly else torch_state()
        if thoroughly:
            self._buffers = self._find_buffers()
        self._writes = self._count_writes()
        self._stepping = False  # last, because a signal may arrive between any two lines

    def begin_step(self, *_: object) -> None:
        self._stepping = True

    def is_intact(self) -> bool:
        """Return whether nothing has changed since the step that cannot be restored."""
        if self.step is None or self._stepping or self._count_writes() != self._writes:
            return False
        if [*map(id, self._find_buffers())] != [*map(id, self._buffers)]:
            return False
        now = random_state()
        return all(torch.equal(now[name], kept) for name, kept in self.random.items() if name not in torch_state())

    def _find_buffers(self) -> list[Tensor]:
        return list(self.model.buffers())

    def _count_writes(self) -> int:
        return sum(map(write_count, self._buffers))


@attrs.define
class EmergencyCheckpoint:
    """A context of training that saves the last completed step when an error ends it.

    Attributes:
        run: the run.
        stage: index of the stage.
        loop: takes the steps.
        read_losses: reads the losses of the steps up to a number, and raises if one is NaN or infinite.
    """

    run: ActiveRun
    stage: int
    loop: Loop
    read_losses: Callable[[int], None]
    _record: _StepRecord = attrs.field(init=False)
    _handle: RemovableHandle = attrs.field(init=False)

    def mark(self, step: int, *, thoroughly: bool = False) -> None:
        """Note that a step is complete and the next one has not begun.

        Args:
            step: completed steps of the stage.
            thoroughly: also look for new buffers, and at the generators of NumPy and Python; this takes too long to
                do after every step.
        """
        self._record.take(step, thoroughly=thoroughly)

    def invalidate(self) -> None:
        """Note that the model is about to change, so the last completed step can no longer be saved."""
        self._record.step = None

    def __enter__(self) -> Self:
        self._record = _StepRecord(self.run.prepared.model)
        self._handle = self.loop.optimizer.register_step_pre_hook(self._record.begin_step)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._handle.remove()
        if error is None:
            return
        if not self.run.interruption.immediate:
            self._save(error)
        shown = explained(error, self.run, self.loop)
        if shown is not error:
            raise shown from error

    def _save(self, error: BaseException) -> None:
        step = self._record.step
        # Saving takes all ranks. All know of a request to stop; of another error, they have to find out.
        if is_lost_contact(error) or not (isinstance(error, KeyboardInterrupt) or all_ranks_fail_at(self._place)):
            return
        try:
            intact = [own for (own,) in gather_numbers([self._record.is_intact()])]
            # Before the first step, the end of the previous stage is saved already, and the first mask updates are
            # repeated from there.
            if not step or not all(intact):
                return
            self.read_losses(step)
            check_finite(self.run, f"after step {step}")
            save_progress(self.run, self.stage, step, self.loop, self._record.random)
        except CheckpointError as failure:
            if not isinstance(error, CheckpointError):  # else the full disk is reported already
                error.add_note(f"no checkpoint of step {step} could be written: {failure}")
        except (PrunekitError, RuntimeError, MemoryError):
            pass  # non-finite weights, a lost device, no memory for a copy: the error that ends the stage is reported

    @property
    def _place(self) -> str:
        return f"{self.run.folder.path} {self.stage} {self._record.step}"
