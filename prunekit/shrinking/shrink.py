"""A network without the units that are gone: traced, folded, resized, and compared with what it was."""

import copy
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError
from prunekit.finding import find_layers, parameter_name
from prunekit.layers import LayerView, ViewOf
from prunekit.masking import Keeper, match
from prunekit.masks import Masks
from prunekit.plugins import make_manager
from prunekit.plugins import view_of as view_of_plugins
from prunekit.shrinking.calls import Call
from prunekit.shrinking.flow import Flow
from prunekit.shrinking.operations import make_rules
from prunekit.shrinking.removing import Kept, find_kept, fold_constants, remove
from prunekit.shrinking.report import LayerSizes, Report
from prunekit.shrinking.watching import Watch

_TOLERANCE = 1e-5
_ROUNDING = 8  # units in the last place of numbers that are coarser than single precision


@attrs.frozen(eq=False)
class Shrunk:
    """A network without the units that are gone.

    Attributes:
        network: a new module of the same classes, its layers resized; modules train or evaluate as those it came from.
        masks: of the weights that had one, cut like them; what training goes on with.
        report: what was removed, and what could not be.
        error: the largest difference from the outputs before, on the samples.
    """

    network: nn.Module
    masks: Masks
    report: Report
    error: float


def shrink(
    network: nn.Module,
    inputs: Any,
    masks: Masks | None = None,
    *,
    keywords: Mapping[str, Any] | None = None,
    view_of: ViewOf | None = None,
) -> Shrunk:
    """Remove the units, filters and channels of which nothing is left, and those that nothing reads.

    A unit without connections puts out a constant, which is folded into the biases of those that read it. Where these
    pad their inputs with zeros, the constants of a layer are brought by one unit that stays. In evaluation mode the
    outputs stay as they are but for rounding; that is checked on the samples. Channels that flow through an operation
    that is not known stay. The same network and masks give the same result.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, or the positional arguments as a tuple.
        masks: what is dropped, besides what is exactly zero.
        keywords: more arguments by name.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.

    Raises:
        ConfigError: the network cannot be called with the samples, or cannot be shrunk: its outputs would differ.
        MaskError: masks that do not fit.
    """
    views = installed_views() if view_of is None else view_of
    call = Call.of(inputs, keywords)
    before = copy.deepcopy(network).eval()
    matched = match(masks.tensors, before) if masks is not None else {}
    for weight, mask in matched.values():
        Keeper(mask)(weight)
    expected = call.outputs(before)
    layers = {name: view for name, view in find_layers(before, views).items() if not view.part}
    masked = {id(weight): mask for weight, mask in matched.values()}
    found = {name: masked[id(view.weight)] for name, view in layers.items() if id(view.weight) in masked}
    trusting = True
    while True:
        small, flow, kept, cut = _attempt(before, call, views, found, trusting=trusting)
        try:
            error = _difference(expected, call.outputs(small))
        except Exception as problem:
            if not (trusting and flow.guessed):
                raise ConfigError(_cannot(f"{type(problem).__name__}: {problem}")) from problem
        else:
            if error is not None:
                break
            if not (trusting and flow.guessed):
                raise ConfigError(_cannot("its outputs would change"))
        trusting = False
    for name, module in network.named_modules():
        small.get_submodule(name).training = module.training
    names = {parameter_name(name, view): name for name, view in layers.items()}
    masks_left = {name: cut.get(names.get(name, ""), mask) for name, (_, mask) in matched.items()}
    small_layers = find_layers(small, views)
    sizes = {name: _sizes(flow, kept, layers[name], small_layers[name], name) for name in kept.layers}
    return Shrunk(small, Masks(masks_left, {} if masks is None else masks.info), Report(sizes), error)


def installed_views() -> ViewOf:
    """Return what gives the views of all layers that the core and the installed plugins know."""
    return view_of_plugins(make_manager())


def watch_copy(network: nn.Module, call: Call, view_of: ViewOf, *, trusting: bool) -> tuple[nn.Module, Flow]:
    """Return a copy of a network, in evaluation mode, and where its channels flow; see ``watching``."""
    copied = copy.deepcopy(network).eval()
    watch = Watch(copied, view_of, make_rules(), trusting=trusting)
    with watch.hooks():
        with watch:
            outputs = call.run(copied)
        return copied, watch.finish(outputs)


def _attempt(
    before: nn.Module, call: Call, view_of: ViewOf, masks: Mapping[str, Tensor], *, trusting: bool
) -> tuple[nn.Module, Flow, Kept, dict[str, Tensor]]:
    """Shrink a copy of a network; return it, what was seen, what it keeps, and the masks that are left, by layer."""
    small, flow = watch_copy(before, call, view_of, trusting=trusting)
    brought = fold_constants(flow)
    kept = find_kept(flow)
    return small, flow, kept, remove(small, view_of, kept, brought, masks)


def _difference(expected: list[Tensor], outputs: list[Tensor]) -> float | None:
    """Return the largest difference; ``None`` where it is more than rounding."""
    largest = 0.0
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in outputs]:
        return None
    for first, second in zip(expected, outputs, strict=True):
        if not torch.is_floating_point(first):
            if not torch.equal(first, second):
                return None
        elif first.numel():
            error = float((first.double() - second.double()).abs().max())
            relative = max(_TOLERANCE, _ROUNDING * torch.finfo(first.dtype).eps)
            # A difference that is no number fails, too.
            if not error <= relative * max(1.0, float(first.abs().max())):
                return None
            largest = max(largest, error)
    return largest


def _sizes(flow: Flow, kept: Kept, before: LayerView, after: LayerView, name: str) -> LayerSizes:
    call = next(call for call in flow.layers if call.layer == name)
    outputs = kept.layers[name].outputs
    stay = outputs[~call.dead[outputs].isnan()]
    reasons = [kept.reasons[root] for root in flow.channels.roots(call.outputs[stay]).tolist()]
    return LayerSizes(
        (len(call.outputs), len(outputs)),
        (len(call.inputs), len(kept.layers[name].inputs)),
        (before.weight.numel(), after.weight.numel()),
        {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )


def _cannot(problem: str) -> str:
    return (
        f"the network cannot be shrunk: {problem}; a size or a choice in its forward depends on what would be removed"
    )
