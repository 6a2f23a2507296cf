"""Hold masks on a model in any training loop, so that dropped weights remain exactly zero.

This module knows models and optimisers of PyTorch. It must not know files, criteria, schedules or the engine.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.distributed.torch_internals import runs_step_hooks
from prunekit.masks.gates import Gate, Switch, register_gate
from prunekit.masks.matching import match
from prunekit.masks.second_moments import lift, second_moments
from prunekit.masks.zeroing import MaskApplier

# These do not change a weight whose value, gradient and state are zero, in their for-loop, foreach and fused forms,
# with momentum, weight decay and every other option. Subclasses may, so the exact class is compared.
_KEEP_ZEROS = frozenset(
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
    """The part of ``Masks`` that ``Held`` uses: ``Masks.hold`` returns a ``Held``, so this module cannot import it."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool of the parameter's shape, True = keep."""


AnyMasks = TypeVar("AnyMasks", bound=MaskSet)


class Held(Generic[AnyMasks]):
    """Masks held on a model in any training loop: dropped weights are exactly 0.0 after every step.

        with masks.hold(model, optimizer) as held:
            for inputs, targets in loader:
                loss(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()
            held.update(other_masks)  # from now on
            ...

    Parameters are not replaced, and all keys of a ``state_dict`` remain the same. From ``attach`` to ``detach``:

    - dropped weights and their optimiser state are zero;
    - gradients are masked as soon as ``backward`` has accumulated them, so that clipping, momentum and weight decay
      see the sparse model, and kept weights move as if the forward pass multiplied by the mask;
    - after the step of an optimiser that could change a dropped weight, the weights are masked again;
    - second moments of dropped weights, which affect nothing, are kept away from 0 on CPUs, where 0 slows steps down.

    When the optimiser loads a state, as trainers do after loading weights, weights and state are zeroed again. After
    loading weights alone, call ``update(held.masks)``.

    Args:
        masks: the masks to hold.
        model: the model; its parameters are found by name at each attach and update.
        optimizer: the optimiser that steps them, or a wrapper around it that accepts no hooks (Accelerate's).

    Attributes:
        masks: the masks currently held.

    Raises:
        MaskError: the masks do not fit the model.
    """

    def __init__(self, masks: AnyMasks, model: nn.Module, optimizer: Optimizer) -> None:
        match(masks.tensors, model)
        self.masks = masks
        self._model = model
        self._optimizer = _hookable(optimizer)
        self._switch = Switch()
        self._least_eps = 0.0
        self._gates: list[tuple[nn.Parameter, Gate]] = []
        self._steps, self._next_lift = 0, 0
        self._gate_handles: list[RemovableHandle] = []
        self._step_handles: list[RemovableHandle] = []

    def attach(self) -> Self:
        """Zero the dropped weights and begin to hold the masks; if already attached, only zero them again."""
        if not self._step_handles:
            self._step_handles = [
                self._optimizer.register_step_pre_hook(self._before_step),
                self._optimizer.register_step_post_hook(self._after_step),
                self._optimizer.register_load_state_dict_post_hook(self._after_load),
            ]
        self._hold(self.masks)
        return self

    def detach(self) -> None:
        """Stop holding the masks, and remove all hooks from the model and the optimiser."""
        for handle in [*self._gate_handles, *self._step_handles]:
            handle.remove()
        for parameter, gate in self._gates:
            moments = second_moments(self._optimizer, parameter)
            if moments is not None:
                gate.keep(moments)
        self._gates, self._gate_handles, self._step_handles = [], [], []

    def update(self, masks: AnyMasks) -> None:
        """Hold other masks from now on.

        Newly dropped weights and their optimiser state become zero; weights that were dropped and are kept from now on
        start from zero with zero state.

        Raises:
            MaskError: the masks do not fit the model; the old ones are still held.
        """
        if self._step_handles:
            self._hold(masks)
        self.masks = masks

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context that leaves gradients unmasked, for schedules that regrow by them; then mask them."""
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
                _zero_state(self._optimizer, parameter, keep)
            if not bool(mask.all()):
                gate = Gate(mask, self._switch)
                self._gates.append((parameter, gate))
                self._gate_handles.append(register_gate(parameter, gate))
        # 0 / 0 is not 0: dividing by sqrt(0) + eps needs an eps that the weight's dtype can tell from 0.
        self._least_eps = max((torch.finfo(parameter.dtype).tiny for parameter, _ in self._gates), default=0.0)
        if self._switch.on:
            self._mask_gradients()

    def _mask_gradients(self) -> None:
        for parameter, gate in self._gates:
            gate.mask_gradient(parameter)

    def _before_step(self, *_: object) -> None:
        # Gradients that no backward pass accumulated: set by hand, or of a weight that was frozen at attach.
        for parameter, gate in self._gates:
            if not gate.passed:
                gate.mask_gradient(parameter)

    def _after_step(self, *_: object) -> None:
        if not self._gates:
            return
        keeps_zeros = _keeps_zeros(self._optimizer, self._least_eps)
        for parameter, gate in self._gates:
            gate.passed = False
            if not keeps_zeros:
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


def _zero_state(optimizer: Optimizer, parameter: nn.Parameter, keep: MaskApplier) -> None:
    if parameter.dim() == 0:  # its step count has the same shape
        return
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
            keep(value)


def _keeps_zeros(optimizer: Optimizer, least_eps: float) -> bool:
    """Return whether an optimiser's step leaves weights of zero, with zero gradient and state, at zero."""
    if type(optimizer) not in _KEEP_ZEROS:
        return False
    return all(group.get("eps", 1.0) >= least_eps for group in optimizer.param_groups)


def _hookable(optimizer: Optimizer) -> Optimizer:
    # Accelerate's wrapper is an Optimizer that was never initialised; the optimiser inside it runs the hooks.
    while not runs_step_hooks(optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer
