"""Count weights and multiply-adds of each layer, dense and under masks.

Multiply-adds are theoretical: one per use of each kept weight, with the number of uses derived from the shapes of one
forward pass. Products outside of layers with a view, such as those of attention, are counted as "other" by
``torch.utils.flop_counter``, as far as it supports them (no recurrent layers on a CPU); elementwise operations (norms,
activations, biases) count as zero.
This module knows layers and masks; it must not know time, files or formats.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunekit.layers.lookup import all_views, find_layers, parameter_name, parameter_of
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.matching import match


@attrs.frozen
class LayerCount:
    """Counts of a layer, or of a masked parameter outside of all layers.

    Attributes:
        name: name of the layer or parameter.
        kind: kind of the layer, as in tables; "parameter" outside of layers.
        weights: number of connections, without biases; shared weights count once, in their first layer.
        kept: number of kept connections; all without a mask.
        multiply_adds: multiply-adds of the pass over all uses; 0 for a parameter outside of layers, whose uses are
            unknown.
        kept_multiply_adds: multiply-adds of kept weights.
    """

    name: str
    kind: str
    weights: int
    kept: int
    multiply_adds: int = 0
    kept_multiply_adds: int = 0


@attrs.frozen
class Account:
    """Counts of a network for one forward pass.

    Attributes:
        layers: layers in the order of the network, then masked parameters outside of layers, without biases and
            normalisation.
        other: multiply-adds outside of layers, which masks do not change.
    """

    layers: tuple[LayerCount, ...]
    other: int

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kept(self) -> int:
        """Kept weights of all layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the dense network."""
        return self.other + sum(layer.multiply_adds for layer in self.layers)

    @property
    def kept_multiply_adds(self) -> int:
        """Multiply-adds of kept weights, plus those outside of layers."""
        return self.other + sum(layer.kept_multiply_adds for layer in self.layers)


def account(
    network: nn.Module,
    run: Callable[[], object],
    masks: Mapping[str, Tensor] | None = None,
    view_of: ViewOf = core_view,
) -> Account:
    """Count the weights of a network and the multiply-adds of one forward pass.

        found = account(network, lambda: network(torch.zeros(1, 784)), masks.tensors)
        print(found.kept / found.weights, found.kept_multiply_adds)

    Args:
        network: the dense network in evaluation mode; dropped weights need not be zero.
        run: runs the network, usually on one sample; multiply-adds are the sum over its samples.
        masks: parameter name -> ``torch.bool`` in the shape of the parameter, True = keep; parameters without a mask
            are kept.
        view_of: returns the view or views of a module.

    Raises:
        MaskError: masks that do not fit the network.
    """
    matched = match(masks or {}, network)
    layers = find_layers(network, view_of)
    kept, strangers = _kept(layers, matched)
    # A weight that several modules share is counted for the first of them.
    owners = {id(parameter_of(view)): name for name, view in layers.items()}
    products = {name: [0, 0] for name in layers}  # dense, and of kept weights
    explained = 0

    def count(name: str, view: LayerView, uses: tuple[int, ...], seen: int) -> None:
        nonlocal explained
        owner = name if name in layers else owners[id(parameter_of(view))]
        found = sum(uses) * view.outputs * view.fan
        products[owner][0] += found
        products[owner][1] += sum(times * left for times, left in zip(uses, kept[owner], strict=True))
        explained += min(found, seen)  # torch does not count every operation, such as mv

    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for name, view in all_views(network, view_of):
            stack.enter_context(_counted_calls(name, view, counter, count))
        # Without fused paths, layers are called one by one and attention is counted on every device.
        stack.enter_context(_no_fast_path())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with torch.no_grad():
            run()
    counts = [
        LayerCount(name, view.kind, view.groups * view.outputs * view.fan, sum(kept[name]), *products[name])
        for name, view in layers.items()
    ]
    return Account((*counts, *strangers), _multiply_adds(counter) - explained)


def _kept(
    layers: Mapping[str, LayerView], matched: Mapping[str, tuple[nn.Parameter, Tensor]]
) -> tuple[dict[str, list[int]], list[LayerCount]]:
    """Return layer -> kept weights of each group, and the masked weights outside of layers."""
    by_parameter = {id(parameter): name for name, (parameter, _) in matched.items()}
    kept, found = {}, set()
    for layer, view in layers.items():
        # A parametrized weight is not a parameter; its mask is found by name.
        name = by_parameter.get(id(parameter_of(view)), parameter_name(layer, view))
        found.add(name)
        if name in matched:
            kept[layer] = view.to_matrix(matched[name][1]).sum((1, 2)).tolist()
        else:
            kept[layer] = [view.outputs * view.fan] * view.groups
    strangers = [
        LayerCount(name, "parameter", mask.numel(), int(mask.count_nonzero()))
        for name, (_, mask) in matched.items()
        if name not in found and mask.dim() > 1  # biases and normalisation are not counted
    ]
    return kept, strangers


@contextmanager
def _counted_calls(
    name: str,
    view: LayerView,
    counter: FlopCounterMode,
    count: Callable[[str, LayerView, tuple[int, ...], int], None],
) -> Iterator[None]:
    """Count every call of a layer, and the multiply-adds that torch counts inside it."""
    began: list[int] = []

    def before(*_: object) -> None:
        began.append(_multiply_adds(counter))

    def after(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
        seen = _multiply_adds(counter) - began.pop()
        uses = view.uses(inspect.signature(module.forward).bind(*arguments, **named).arguments, outputs)
        if uses is not None:
            count(name, view, uses, seen)

    handles = [
        view.module.register_forward_pre_hook(before),
        view.module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiply_adds(counter: FlopCounterMode) -> int:
    return counter.get_total_flops() // 2  # torch counts a multiplication and an addition as two


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Disable the fused operation of torch for attention and encoder layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
