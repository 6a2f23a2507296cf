"""Holding masks on a model while anyone's loop trains it, so that zeros stay exactly zero.

This module knows models and optimisers of PyTorch. It must not know files, criteria, schedules or the engine.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, Self, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.distributed.torch_internals import runs_step_hooks
from prunekit.masks.matching import match
from prunekit.masks.second_moments import lift, second_moments
from prunekit.masks.zeroing import MaskApplier

# These leave a weight alone whose value, gradient and state are zero, in their for-loop, foreach and fused forms,
# with momentum, weight decay and every other option; subclasses may not, so the exact class is asked for.
_LEAVES_ZEROS_ALONE = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.RMSprop,
    }
)


class MaskSet(Protocol):
    """What ``Held`` needs to know of ``Masks``."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool of the parameter's shape, True = keep."""


AnyMasks = TypeVar("AnyMasks", bound=MaskSet)


class Held(Generic[AnyMasks]):
    """Masks held on a model while any loop trains it: dropped weights are exactly 0.0 after every step.

    Parameters are not replaced and no key of a ``state_dict`` changes its name. From ``attach`` to ``detach``:

    - dropped weights and their optimiser state are zero;
    - gradients are masked as soon as ``backward`` has accumulated them, so clipping, momentum and weight decay
      are those of the sparse model, and kept weights move as if the forward pass multiplied by the mask;
    - after the step of an optimiser that could move such a weight, the weights are masked once more;
    - second moments of dropped weights, which play no part, are not left at 0, where that makes steps slow.

    When the optimiser loads a state, as trainers do after they have loaded the weights, both are zeroed again.
    Whoever loads weights alone meanwhile calls ``update(held.masks)`` afterwards.

    Args:
        masks: what to hold.
        model: the model; its parameters are found by name at each attach and update.
        optimizer: the optimiser that steps them, or a wrapper around it that takes no hooks (Accelerate's).

    Attributes:
        masks: the masks held now.

    Raises:
        MaskError: when the masks do not fit the model.
    """

    def __init__(self, masks: AnyMasks, model: nn.Module, optimizer: Optimizer) -> None:
        match(masks.tensors, model)
        self.masks = masks
        self._model = model
        self._optimizer = _that_steps(optimizer)
        self._switch = _Switch()
        self._least_eps = 0.0
        self._gates: list[tuple[nn.Parameter, _Gate]] = []
        self._steps, self._next_lift = 0, 0
        self._gate_handles: list[RemovableHandle] = []
        self._step_handles: list[RemovableHandle] = []

    def attach(self) -> Self:
        """Zero what is dropped and begin to hold it; again when attached already, to no other effect."""
        if not self._step_handles:
            self._step_handles = [
                self._optimizer.register_step_pre_hook(self._before_step),
                self._optimizer.register_step_post_hook(self._after_step),
                self._optimizer.register_load_state_dict_post_hook(self._after_load),
            ]
        self._hold(self.masks)
        return self

    def detach(self) -> None:
        """Stop holding: nothing of this object is left on the model or the optimiser."""
        for handle in [*self._gate_handles, *self._step_handles]:
            handle.remove()
        for parameter, gate in self._gates:
            moments = second_moments(self._optimizer, parameter)
            if moments is not None:
                gate.keep(moments)
        self._gates, self._gate_handles, self._step_handles = [], [], []

    def update(self, masks: AnyMasks) -> None:
        """Hold other masks from now on.

        Weights dropped now become zero with their optimiser state; weights dropped until now and kept from
        now on start from zero with zero state.

        Raises:
            MaskError: when the masks do not fit the model; then the old ones stay.
        """
        if self._step_handles:
            self._hold(masks)
        self.masks = masks

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave gradients whole, for a schedule that regrows by them; on leaving they are masked."""
        self._switch.on = False
        try:
            yield
        finally:
            self._switch.on = True
            self._mask_gradients()

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _hold(self, masks: AnyMasks) -> None:
        matched = match(masks.tensors, self._model)
        before = {name: mask for name, (_, mask) in match(self.masks.tensors, self._model).items()}
        for handle in self._gate_handles:
            handle.remove()
        self._gates, self._gate_handles, self._next_lift = [], [], 0
        for name, (parameter, mask) in matched.items():
            old = before.get(name, mask)
            stayed = mask if old is mask else mask & old.to(mask.device)
            if not bool(stayed.all()):
                keep = MaskApplier(stayed)
                keep(parameter)
                self._zero_state(parameter, keep)
            if not bool(mask.all()):
                gate = _Gate(mask, self._switch)
                self._gates.append((parameter, gate))
                self._gate_handles.append(_watch(parameter, gate))
        # Zero by zero is not zero: dividing by sqrt(0) + eps needs an eps that the weight's dtype can tell from 0.
        self._least_eps = max((torch.finfo(parameter.dtype).tiny for parameter, _ in self._gates), default=0.0)
        if self._switch.on:
            self._mask_gradients()

    def _zero_state(self, parameter: nn.Parameter, keep: MaskApplier) -> None:
        if parameter.dim() == 0:  # then a step count has its shape
            return
        for value in self._optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                keep(value)

    def _mask_gradients(self) -> None:
        for parameter, gate in self._gates:
            gate.mask_gradient(parameter)

    def _before_step(self, *_: object) -> None:
        # Gradients that no backward brought: set by hand, or of a weight that was frozen when we attached.
        for parameter, gate in self._gates:
            if not gate.passed:
                gate.mask_gradient(parameter)

    def _after_step(self, *_: object) -> None:
        if not self._gates:
            return
        leaves_alone = self._leaves_zeros_alone()
        for parameter, gate in self._gates:
            gate.passed = False
            if not leaves_alone:
                gate.keep(parameter)
        self._steps += 1
        if self._steps >= self._next_lift:
            self._lift()

    def _lift(self) -> None:
        for parameter, gate in self._gates:
            if self._steps >= gate.next_lift:
                wait = lift(self._optimizer, parameter, gate.keep.local_mask(parameter))
                gate.next_lift = self._steps + wait + 1
        self._next_lift = min(gate.next_lift for _, gate in self._gates)

    def _after_load(self, _: Optimizer) -> None:
        self._hold(self.masks)

    def _leaves_zeros_alone(self) -> bool:
        if type(self._optimizer) not in _LEAVES_ZEROS_ALONE:
            return False
        return all(group.get("eps", 1.0) >= self._least_eps for group in self._optimizer.param_groups)


def _that_steps(optimizer: Optimizer) -> Optimizer:
    # Accelerate's wrapper is an Optimizer that was never initialised as one; the one inside runs the hooks.
    while not runs_step_hooks(optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


@attrs.define
class _Switch:
    on: bool = True


class _Gate:
    """What a held parameter calls when its gradient has been accumulated. It must not know the parameter.

    (A hook that refers to its tensor would keep both alive for ever.)
    """

    def __init__(self, mask: Tensor, switch: _Switch) -> None:
        self.keep = MaskApplier(mask)
        self.passed = False
        self.next_lift = 0
        self._switch = switch

    def __call__(self, parameter: Tensor) -> None:
        self.passed = False
        if self._switch.on:
            self.mask_gradient(parameter)

    def mask_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.keep(parameter.grad)
            self.passed = True


def _watch(parameter: nn.Parameter, gate: _Gate) -> RemovableHandle:
    """Register the gate, on a frozen parameter too: it may be thawed later."""
    frozen = not parameter.requires_grad
    if frozen:
        parameter.requires_grad_(True)
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(gate)  # type: ignore[no-untyped-call]
    if frozen:
        parameter.requires_grad_(False)
    return handle
