"""A network without the units that are gone: traced, folded, resized, and compared with what it was."""

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import attrs
from torch import Tensor, nn

from prunekit.deployment.output_check import compare
from prunekit.deployment.shrinking.liveness import Kept, find_kept, fold_constants
from prunekit.deployment.shrinking.report import LayerSizes, Report
from prunekit.deployment.shrinking.resizing import remove
from prunekit.errors import ConfigError
from prunekit.layers.channels.flow import Flow
from prunekit.layers.channels.trace import watch_copy
from prunekit.layers.samples import Samples
from prunekit.layers.view import ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.masks.reparametrized import copy_of
from prunekit.masks.zeroing import MaskApplier
from prunekit.plugins.manager import installed_views

_TOLERANCE = 1e-5


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
    view_of: ViewOf | None = None,
) -> Shrunk:
    """Remove the units, filters and channels of which nothing is left, and those that nothing reads.

    A unit without connections puts out a constant, which is folded into the biases of those that read it. Where these
    pad their inputs with zeros, the constants of a layer are brought by one unit that stays. In evaluation mode the
    outputs stay as they are but for rounding; that is checked on the samples. Channels that flow through an operation
    that is not known stay. The same network and masks give the same result.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        masks: what is dropped, besides what is exactly zero.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.

    Raises:
        ConfigError: the network cannot be called with the samples, or cannot be shrunk: its outputs would differ.
        MaskError: masks that do not fit.
    """
    views = installed_views() if view_of is None else view_of
    samples = Samples.of(inputs)
    before = copy_of(network).eval()
    matched = match(masks.tensors, before) if masks is not None else {}
    for weight, mask in matched.values():
        MaskApplier(mask)(weight)
    expected = samples.through(before)
    given = {name: mask for name, (_, mask) in matched.items()}
    for trusting in (True, False):
        small, flow, kept, left = _attempt(before, samples, views, given, trusting=trusting)
        error, problem = _compare(expected, samples, small)
        if not problem:
            break
        if not (trusting and flow.guessed):
            raise ConfigError(
                f"the network cannot be shrunk: {problem}; a size or a choice in its forward is in the way"
            )
    for name, module in network.named_modules():
        small.get_submodule(name).training = module.training
    sizes = {name: _sizes(flow, kept, name, before, small) for name in kept.layers}
    return Shrunk(small, Masks(left, {} if masks is None else masks.info), Report(sizes), error)


def _attempt(
    before: nn.Module, samples: Samples, view_of: ViewOf, masks: Mapping[str, Tensor], *, trusting: bool
) -> tuple[nn.Module, Flow, Kept, dict[str, Tensor]]:
    """Shrink a copy of a network; return it, what was seen, what it keeps, and the masks that are left."""
    small, flow = watch_copy(before, samples, view_of, trusting=trusting)
    brought = fold_constants(flow)
    kept = find_kept(flow)
    return small, flow, kept, remove(small, view_of, kept, brought, masks)


def _compare(expected: Sequence[Tensor], samples: Samples, network: nn.Module) -> tuple[float, str]:
    """Return the largest difference from the outputs expected, and what is wrong with them, or ""."""
    try:
        outputs = samples.through(network)
    except Exception as problem:  # noqa: BLE001 - whatever a forward does with sizes that it did not expect
        return math.inf, " ".join(f"without what is gone it fails: {type(problem).__name__}: {problem}".split())
    return compare(expected, outputs, _TOLERANCE)


def _sizes(flow: Flow, kept: Kept, name: str, before: nn.Module, after: nn.Module) -> LayerSizes:
    call = next(call for call in flow.layers if call.layer == name)
    weights = (attrgetter(call.view.parameter)(network.get_submodule(name)) for network in (before, after))
    large, small = (weight.numel() for weight in weights)
    outputs = kept.layers[name].outputs
    stay = outputs[~call.dead[outputs].isnan()]
    reasons = [kept.reasons[root] for root in flow.channels.roots(call.outputs[stay]).tolist()]
    return LayerSizes(
        (len(call.outputs), len(outputs)),
        (len(call.inputs), len(kept.layers[name].inputs)),
        (large, small),
        {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )
