"""Modules that follow channels: normalisations, scales and shifts, activations with one parameter per channel.

A follower has no units of its own and is never pruned, but when channels are removed it must be resized with them.
This module is the contract; ``torch_followers`` implements it for PyTorch, and plugins add others through a hook. It
must not know layer views, nor where channels flow.
"""

import abc
from typing import ClassVar

import torch
from torch import Tensor, nn


class ChannelFollower(abc.ABC):
    """A module whose output has the channels of its input, each computed from the same input channel.

    The module is called with one tensor, and in evaluation mode it must not compute statistics across channels (but see
    ``groups``). A follower for a module type of your own names its tensors and says how constants pass through:

        class ScaleFollower(ChannelFollower):  # for a module that multiplies each channel by an entry of ``scale``
            per_channel = ("scale",)

            def constants(self, inputs):
                return inputs * self.values("scale")

    Attributes:
        module: the module that follows channels.
        per_channel: names of the module's parameters and buffers that have one entry per channel, along their first
            axis. A name whose value is ``None`` is ignored. The module must have no other parameters.
        channel_axis: axis of the channels in the module's input and output; negative values count from the end.
    """

    per_channel: ClassVar[tuple[str, ...]]
    channel_axis: ClassVar[int] = 1

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def channels(self) -> int:
        """Number of channels; by default the length of the first tensor in ``per_channel``."""
        return next(len(tensor) for name in self.per_channel if (tensor := getattr(self.module, name)) is not None)

    @property
    def groups(self) -> int:
        """Number of groups of consecutive channels, each kept or removed as a whole; by default one per channel."""
        return self.channels

    @abc.abstractmethod
    def constants(self, inputs: Tensor) -> Tensor:
        """Return the value of each output channel for constant inputs, in evaluation mode: float64 ``[channels]``.

        Args:
            inputs: float64 ``[channels]`` on the CPU: the value of each input channel, the same at all positions; NaN
                if the channel varies. The output of a channel that varies must be NaN, unless it is constant anyway.
        """

    def resize(self, kept: Tensor) -> None:
        """Keep only some channels of the module, in place.

        By default cuts the tensors in ``per_channel``. Override it, and call it, if the module also stores its number
        of channels.

        Args:
            kept: numbers of the channels to keep, ascending; int64.
        """
        for name in self.per_channel:
            old = getattr(self.module, name)
            if old is not None:
                values = torch.index_select(old.detach(), 0, kept.to(old.device))
                new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
                setattr(self.module, name, new)

    def values(self, name: str) -> Tensor:
        """Return one of the tensors in ``per_channel``, for use in ``constants``: float64 on the CPU, detached."""
        tensor: Tensor = getattr(self.module, name)
        return tensor.detach().double().cpu()
