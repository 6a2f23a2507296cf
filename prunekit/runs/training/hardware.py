"""Where and in which arithmetic a run computes: device, precision, memory order, compilation.

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
    """A device and how to use it."""

    device: torch.device
    precision: str
    tf32: bool
    channels_last: bool
    compile: bool

    @classmethod
    def of(cls, device: str, training: Training) -> "Hardware":
        """Build from the run's device name and its training settings."""
        return cls(pick_device(device), training.precision, training.tf32, training.channels_last, training.compile)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and into the memory order."""
        if self.channels_last:
            # The stubs of torch do not know memory_format on modules.
            return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]
        return model.to(self.device)

    def callable(self, model: nn.Module) -> nn.Module:
        """Return what to call in training: the model, compiled on request."""
        return torch.compile(model) if self.compile else model  # type: ignore[return-value]

    @property
    def pins_memory(self) -> bool:
        """Whether batches are to lie in memory that the device copies from by itself."""
        return self.device.type == "cuda"

    def move(self, batch: Any) -> Any:
        """Move every tensor of a batch (nested tuples, lists, dicts) to the device, without waiting for it."""
        return map_tensors(self._move, batch)

    def _move(self, tensor: Tensor) -> Tensor:
        # From other memory the processor copies, and waits until the GPU has done all that came before.
        if self.pins_memory and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        channels_last = self.channels_last and tensor.dim() == _IMAGE_DIMENSIONS
        order = torch.channels_last if channels_last else torch.preserve_format
        return tensor.to(self.device, non_blocking=True, memory_format=order)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of mixed precision; does nothing in fp32."""
        lower = _AUTOCAST.get(self.precision)
        return nullcontext() if lower is None else torch.autocast(self.device.type, dtype=lower)

    @contextmanager
    def products(self, *, exact: bool = False) -> Iterator[None]:
        """Set how a GPU multiplies fp32 numbers while the context lasts: factors rounded to TF32 only where asked for.

        Without it, torch would round those of convolutions. Nothing changes for other devices.

        Args:
            exact: round nowhere, for statistics.
        """
        if self.device.type != "cuda":
            yield
            return
        rounded = self.tf32 and not exact
        # torch's newer names for these settings make its compiler fail, which reads the older.
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        torch.backends.cudnn.allow_tf32 = rounded
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler, which does something in fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __str__(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        ranks = f", {rank_count()} ranks" if rank_count() > 1 else ""
        return f"{self.device} ({where}{threads}), {self.precision}{ranks}"
