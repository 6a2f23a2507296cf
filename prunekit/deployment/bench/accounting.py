"""What a network costs: weights and multiply-adds of each layer, dense and under masks.

Multiply-adds are theoretical: every kept weight once for each use of it, and how often it is used is read off the
shapes of one forward pass. Products outside of layers, such as those of attention and of layers of
kinds that have no view, are counted by ``torch.utils.flop_counter``, as "other", as far as it knows them (on a CPU no
recurrent layers); what works number by number (norms, activations, biases) counts nothing.
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
    """A layer, or a masked parameter that is in none.

    Attributes:
        name: of the layer, or of the parameter.
        kind: as in tables; "parameter" where it is in no layer.
        weights: connections, no biases; what layers share counts once, under the first of them.
        kept: those that the mask keeps, all where there is none.
        multiply_adds: of the pass, over all uses; of a parameter that is in no layer 0, since its uses are not seen.
        kept_multiply_adds: those of kept weights.
    """

    name: str
    kind: str
    weights: int
    kept: int
    multiply_adds: int = 0
    kept_multiply_adds: int = 0


@attrs.frozen
class Account:
    """A network and one forward pass through it.

    Attributes:
        layers: in the order of the network; then masked parameters that are in none, but biases and normalisation.
        other: multiply-adds outside of layers, which masks do not change.
    """

    layers: tuple[LayerCount, ...]
    other: int

    @property
    def weights(self) -> int:
        """Of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kept(self) -> int:
        """Weights that masks keep."""
        return sum(layer.kept for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Of the dense network."""
        return self.other + sum(layer.multiply_adds for layer in self.layers)

    @property
    def kept_multiply_adds(self) -> int:
        """Of kept weights, and the others."""
        return self.other + sum(layer.kept_multiply_adds for layer in self.layers)


def account(
    network: nn.Module,
    run: Callable[[], object],
    masks: Mapping[str, Tensor] | None = None,
    view_of: ViewOf = core_view,
) -> Account:
    """Count a network's weights, and the multiply-adds of one forward pass.

    Args:
        network: in evaluation mode; the dense one, its weights need not be masked.
        run: runs it, best on one sample: multiply-adds are those of all samples that it takes.
        masks: parameter name -> True = keep; what has none is kept.
        view_of: the view, or the views, of a module.

    Raises:
        MaskError: when masks do not fit the network.
    """
    matched = match(masks or {}, network)
    layers = find_layers(network, view_of)
    kept, strangers = _kept(layers, matched)
    # A weight that several modules share is the layer of the first.
    owners = {id(parameter_of(view)): name for name, view in layers.items()}
    products = {name: [0, 0] for name in layers}  # dense, and of kept weights
    explained = 0

    def count(name: str, view: LayerView, uses: tuple[int, ...], seen: int) -> None:
        nonlocal explained
        owner = name if name in layers else owners[id(parameter_of(view))]
        found = sum(uses) * view.outputs * view.fan
        products[owner][0] += found
        products[owner][1] += sum(times * left for times, left in zip(uses, kept[owner], strict=True))
        explained += min(found, seen)  # torch does not count every operation, mv for one

    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for name, view in all_views(network, view_of):
            stack.enter_context(_watched(name, view, counter, count))
        # So that layers are called one by one, and the products of attention are counted on every device.
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
    """Return how many weights of each group masks keep, by layer; and the masked weights that are in no layer."""
    by_parameter = {id(parameter): name for name, (parameter, _) in matched.items()}
    kept, found = {}, set()
    for layer, view in layers.items():
        # A computed weight is no parameter; its mask bears its name.
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
def _watched(
    name: str,
    view: LayerView,
    counter: FlopCounterMode,
    count: Callable[[str, LayerView, tuple[int, ...], int], None],
) -> Iterator[None]:
    """Count every call of a layer, beside what torch counts inside of it."""
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
    """Keep attention and encoder layers of torch from running as one operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
