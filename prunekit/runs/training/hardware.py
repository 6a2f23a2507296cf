"""The device of a run and how to compute on it: precision, memory order, compilation.

It must not know what is computed.
"""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import map_tensors
from prunekit.distributed.devices import pick_device
from prunekit.distributed.ranks import rank_count

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_IMAGE_DIMENSIONS = 4


@attrs.frozen
class Hardware:
    """A device and how to compute on it.

    Attributes:
        device: where models and batches are placed.
        precision: arithmetic of forward and backward passes in training: "fp32", "bf16" or "fp16".
        tf32: whether a GPU may round the factors of fp32 products to TF32.
        channels_last: whether images and convolutions are kept in channels-last memory order.
        compile: whether the model runs through ``torch.compile``.
    """

    device: torch.device
    precision: str
    tf32: bool
    channels_last: bool
    compile: bool

    @classmethod
    def of(cls, device: str, training: Training) -> "Hardware":
        """Build from a device name such as "auto" or "cuda:1", and training settings.

        Raises:
            ConfigError: when there is no such device.
        """
        return cls(pick_device(device), training.precision, training.tf32, training.channels_last, training.compile)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model, in place, to the device and into the memory order; return it."""
        if self.channels_last:
            # torch's stubs lack memory_format for modules.
            return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]
        return model.to(self.device)

    def callable(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training: the model, compiled if requested."""
        return torch.compile(model) if self.compile else model  # type: ignore[return-value]

    @property
    def pins_memory(self) -> bool:
        """Whether batches should be in pinned memory, from which the device copies asynchronously."""
        return self.device.type == "cuda"

    def move(self, batch: Any) -> Any:
        """Return a batch with every tensor, in nested tuples, lists and dicts, moved to the device without waiting."""
        return map_tensors(self._move, batch)

    def _move(self, tensor: Tensor) -> Tensor:
        # From unpinned memory the CPU copies, and first waits until the GPU has finished all earlier work.
        if self.pins_memory and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        channels_last = self.channels_last and tensor.dim() == _IMAGE_DIMENSIONS
        order = torch.channels_last if channels_last else torch.preserve_format
        return tensor.to(self.device, non_blocking=True, memory_format=order)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of mixed precision; it does nothing in fp32."""
        lower = _AUTOCAST.get(self.precision)
        return nullcontext() if lower is None else torch.autocast(self.device.type, dtype=lower)

    @contextmanager
    def products(self, *, exact: bool = False) -> Iterator[None]:
        """Let a GPU round the factors of fp32 products to TF32 within the context only if ``tf32`` is set.

        By default, torch rounds the factors of convolutions. On other devices this does nothing.

        Args:
            exact: do not round at all, for statistics.
        """
        if self.device.type != "cuda":
            yield
            return
        rounded = self.tf32 and not exact
        # The newer names for these settings make torch's compiler fail, because it reads the older ones.
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        torch.backends.cudnn.allow_tf32 = rounded
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, enabled in fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __str__(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        count = torch.get_num_threads()
        threads = f", {count} thread{'' if count == 1 else 's'}" if self.device.type == "cpu" else ""
        ranks = f", {rank_count()} ranks" if rank_count() > 1 else ""
        return f"{self.device} ({where}{threads}), {self.precision}{ranks}"
