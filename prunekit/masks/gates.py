"""Hooks that mask the gradient of a held parameter as soon as ``backward`` has accumulated it.

This module must not know names, models or optimisers.
"""

import attrs
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunekit.masks.zeroing import MaskApplier


@attrs.define
class Switch:
    """Turns all gates of a model on or off at once."""

    on: bool = True


class Gate:
    """Masks the gradient of one parameter; called by a hook on the parameter.

    It holds no reference to the parameter: a hook that refers to its own tensor keeps both alive for ever.

    Args:
        mask: bool of the parameter's shape, True = keep.
        switch: while it is off, gradients are not masked.

    Attributes:
        keep: masks any tensor of the parameter's shape.
        passed: whether the current gradient has been masked.
        next_lift: the step after which second moments are next kept away from 0.
    """

    def __init__(self, mask: Tensor, switch: Switch) -> None:
        self.keep = MaskApplier(mask)
        self.passed = False
        self.next_lift = 0
        self._switch = switch

    def __call__(self, parameter: Tensor) -> None:
        self.passed = False
        if self._switch.on:
            self.mask_gradient(parameter)

    def mask_gradient(self, parameter: Tensor) -> None:
        """Mask the parameter's gradient, if it has one."""
        if parameter.grad is not None:
            self.keep(parameter.grad)
            self.passed = True


def register_gate(parameter: nn.Parameter, gate: Gate) -> RemovableHandle:
    """Call a gate whenever a gradient is accumulated; frozen parameters too, since they may be unfrozen later."""
    frozen = not parameter.requires_grad
    if frozen:
        parameter.requires_grad_(True)
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(gate)  # type: ignore[no-untyped-call]
    if frozen:
        parameter.requires_grad_(False)
    return handle
