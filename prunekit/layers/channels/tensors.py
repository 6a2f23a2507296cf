"""The tensors of a forward pass and the channels that they carry. This module must not know operations or modules."""

import torch
from torch import Tensor

from prunekit.distributed.torch_internals import write_count
from prunekit.layers.channels.flow import AxisChannels, Flow, TracedTensor


class TracedTensors:
    """Tensors whose channels are known.

    Channels of a tensor that is no longer traced must be kept, because nothing is known about their use.

    Args:
        flow: the record of the trace, which is updated.
        trust_sizes: whether to assume that a size written as a number in a reshape is the number of channels.
    """

    def __init__(self, flow: Flow, *, trust_sizes: bool) -> None:
        self.flow, self.trust_sizes = flow, trust_sizes
        self._traced: dict[int, TracedTensor] = {}

    def known(self, tensor: Tensor) -> AxisChannels | None:
        """Return the channels of a tensor; ``None`` if they are unknown, or the tensor was changed in place."""
        traced = self._traced.get(id(tensor))
        if traced is None:
            return None
        if traced.writes != write_count(tensor):
            self.forget(tensor, "it was changed in place")
            return None
        return traced.along

    def along(self, tensor: Tensor, axis: int) -> AxisChannels:
        """Return the channels along an axis of a tensor; unknown channels become new ones, which must be kept."""
        axis %= tensor.dim()
        found = self.known(tensor)
        if found is not None and found.axis == axis:
            return found
        self.forget(tensor, "it is read along another axis")
        channels = self.flow.channels.new(tensor.shape[axis])
        self.flow.channels.keep(channels, "it comes from an input, or from an operation that cannot be traced")
        return AxisChannels(axis, channels, torch.full(channels.shape, torch.nan, dtype=torch.float64))

    def note(self, tensor: Tensor, along: AxisChannels) -> None:
        """Record the channels of a tensor."""
        if tensor.is_inference():  # it has no version counter
            self.flow.channels.keep(along.channels, "it passes through inference mode")
        else:
            self._traced[id(tensor)] = TracedTensor(tensor, write_count(tensor), along)

    def renew(self, tensor: Tensor) -> None:
        """Accept that a traced operation has changed a tensor in place."""
        if id(tensor) in self._traced:
            self._traced[id(tensor)].writes = write_count(tensor)

    def forget(self, tensor: Tensor, reason: str) -> None:
        """Stop tracing a tensor; its channels must be kept."""
        traced = self._traced.pop(id(tensor), None)
        if traced is not None:
            self.flow.channels.keep(traced.along.channels, reason)
