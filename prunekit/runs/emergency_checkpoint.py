"""What a stage that ends before its time leaves behind: a checkpoint of the last moment between two steps.

That moment can be saved for as long as weights, masks and buffers still are those of it, so also while the batches
of the next step are read, in statistics and in evaluation. This module must not know why the stage ends.
"""

from collections.abc import Callable
from operator import attrgetter
from types import TracebackType
from typing import Self

import attrs
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from prunekit.distributed.failure import all_ranks_fail_at
from prunekit.distributed.process_group import is_lost_contact
from prunekit.distributed.random_state import random_state, torch_state
from prunekit.distributed.ranks import gather_numbers
from prunekit.errors import CheckpointError, PrunekitError
from prunekit.runs.fault_messages import in_words
from prunekit.runs.state import RunState
from prunekit.runs.training.loop import Loop

_version = attrgetter("_version")  # torch counts writes, and says so nowhere else


@attrs.define
class EmergencyCheckpoint:
    """Saves the last moment between two steps when an error passes through.

    Attributes:
        state: the run.
        stage: index of the stage.
        loop: takes the steps.
        read_losses: reads the losses of the steps up to a number, which is refused where one is no number.
    """

    state: RunState
    stage: int
    loop: Loop
    read_losses: Callable[[int], None]
    _step: int | None = attrs.field(default=None, init=False)
    _stepping: bool = attrs.field(default=False, init=False)
    _random: dict[str, Tensor] = attrs.field(factory=random_state, init=False)
    _buffers: list[Tensor] = attrs.field(init=False)
    _versions: int = attrs.field(default=0, init=False)
    _handle: RemovableHandle = attrs.field(init=False)

    def mark(self, step: int, *, thoroughly: bool = False) -> None:
        """Say that so many steps are done, and nothing of the next one.

        Args:
            step: their number.
            thoroughly: whatever the step has done; to look for new buffers, and at the states of NumPy's and Python's
                generators, takes too long for every step.
        """
        self._step = step
        self._random |= random_state() if thoroughly else torch_state()
        if thoroughly:
            self._buffers = self._find_buffers()
        self._versions = self._count_versions()
        self._stepping = False  # last: an interruption may come between any two lines

    def lose(self) -> None:
        """Say that the state is no more that of the last mark."""
        self._step = None

    def __enter__(self) -> Self:
        self._buffers = self._find_buffers()
        self._handle = self.loop.optimizer.register_step_pre_hook(self._begin_step)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._handle.remove()
        if error is None:
            return
        if not self.state.stop.hurried:
            self._save(error)
        told = in_words(error, self.state, self.loop)
        if told is not error:
            raise told from error

    def _save(self, error: BaseException) -> None:
        step = self._step
        # Of several ranks all must save. A request to stop is known to all.
        if is_lost_contact(error) or not (isinstance(error, KeyboardInterrupt) or all_ranks_fail_at(self._place)):
            return
        try:
            whole = [kept for (kept,) in gather_numbers([self._is_whole()])]
            # Before the first step, what is there is the end of the stage before, from which its first updates are
            # chosen again.
            if not step or not all(whole):
                return
            self.read_losses(step)
            self.state.check_finite(f"after step {step}")
            self.state.save_checkpoint(self.stage, step, self.loop, self._random)
        except CheckpointError as failure:
            if not isinstance(error, CheckpointError):  # of a disk that is full once is enough
                error.add_note(f"no checkpoint of step {step} could be written: {failure}")
        except (PrunekitError, RuntimeError, MemoryError):
            pass  # weights that are no numbers, a device that is gone, no room for a copy: what ends the stage is told

    @property
    def _place(self) -> str:
        return f"{self.state.folder.path} {self.stage} {self._step}"

    def _is_whole(self) -> bool:
        """Say whether nothing has moved on since the last mark that could not be taken back."""
        if self._step is None or self._stepping or self._count_versions() != self._versions:
            return False
        if [*map(id, self._find_buffers())] != [*map(id, self._buffers)]:
            return False
        now = random_state()
        return all(torch.equal(now[name], kept) for name, kept in self._random.items() if name not in torch_state())

    def _begin_step(self, *_: object) -> None:
        self._stepping = True

    def _find_buffers(self) -> list[Tensor]:
        return list(self.state.prepared.model.buffers())

    def _count_versions(self) -> int:
        return sum(map(_version, self._buffers))
