"""Shrink a network: trace its channels, fold constants, remove units, and compare the outputs with the original."""

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
from prunekit.layers.channels.tracer import trace_channels
from prunekit.layers.samples import Samples
from prunekit.layers.view import ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.masks.reparametrized import copy_of
from prunekit.masks.zeroing import MaskApplier
from prunekit.plugins.manager import installed_views

_TOLERANCE = 1e-5  # constants are summed in another order


@attrs.frozen(eq=False)
class Shrunk:
    """The result of ``shrink``.

    Attributes:
        network: the smaller network: a new module of the same classes, with its layers resized. Each module is in
            training or evaluation mode like the original one.
        masks: masks of the parameters that had one, cut like them, for further training.
        report: sizes of each layer before and after.
        error: largest difference between the outputs of both networks on the samples.
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
    """Return a smaller network without the units, filters and channels that have no connections or that nothing reads.

    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> masks = prunekit.select(network, density={"0": 0.25}, pattern="units")
    >>> shrink(network, torch.randn(4, 3), masks).network[0]
    Linear(in_features=3, out_features=2, bias=True)

    A unit without connections outputs a constant, which is folded into the biases of the layers that read it. If these
    layers pad their inputs with zeros, one unit is kept to carry all constants of a layer. In evaluation mode the
    outputs of both networks are equal up to rounding; this is checked on the samples. Channels that pass through an
    unknown operation are kept. The same network and masks always give the same result.

    Args:
        network: any module with values; it is not changed.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        masks: the masks of the network; weights that are exactly 0 count as dropped, too.
        view_of: returns the view of a module; ``None``: prunekit and all installed plugins do.

    Raises:
        ConfigError: the network cannot be called with the samples, or the outputs of the smaller network differ.
        MaskError: masks that do not fit the network.
    """
    view_of = view_of or installed_views()
    samples = Samples.of(inputs)
    before = copy_of(network).eval()
    matched = match(masks.tensors, before) if masks is not None else {}
    for weight, mask in matched.values():
        MaskApplier(mask)(weight)
    expected = samples.through(before)
    given = {name: mask for name, (_, mask) in matched.items()}
    for trust_sizes in (True, False):
        small, flow, kept, cut = _attempt(before, samples, view_of, given, trust_sizes=trust_sizes)
        error, problem = _compare(expected, samples, small)
        if not problem:
            break
        if not (trust_sizes and flow.trusted_sizes):
            raise ConfigError(
                f"the network cannot be shrunk: {problem}; check its forward for fixed numbers of channels, and for "
                "decisions that depend on values"
            )
    for name, module in network.named_modules():
        small.get_submodule(name).training = module.training
    sizes = {name: _sizes(flow, kept, name, before, small) for name in kept.layers}
    return Shrunk(small, Masks(cut, {} if masks is None else masks.info), Report(sizes), error)


def _attempt(
    before: nn.Module, samples: Samples, view_of: ViewOf, masks: Mapping[str, Tensor], *, trust_sizes: bool
) -> tuple[nn.Module, Flow, Kept, dict[str, Tensor]]:
    """Shrink a copy of a network; return it, where its channels flow, what it keeps, and its masks."""
    small, flow = trace_channels(before, samples, view_of, trust_sizes=trust_sizes)
    contributions = fold_constants(flow)
    kept = find_kept(flow)
    return small, flow, kept, remove(small, view_of, kept, contributions, masks)


def _compare(expected: Sequence[Tensor], samples: Samples, network: nn.Module) -> tuple[float, str]:
    """Return the largest difference from the expected outputs, and the problem with them, or ""."""
    try:
        outputs = samples.through(network)
    except Exception as problem:  # noqa: BLE001 - a forward may raise anything for unexpected sizes
        return math.inf, " ".join(f"the smaller network fails: {type(problem).__name__}: {problem}".split())
    return compare(expected, outputs, _TOLERANCE)


def _sizes(flow: Flow, kept: Kept, name: str, before: nn.Module, after: nn.Module) -> LayerSizes:
    call = next(call for call in flow.layers if call.layer == name)
    weights = (attrgetter(call.view.parameter)(network.get_submodule(name)) for network in (before, after))
    large, small = (weight.numel() for weight in weights)
    outputs = kept.layers[name].outputs
    constant = outputs[~call.output_constants[outputs].isnan()]
    reasons = [kept.reasons[root] for root in flow.channels.roots(call.outputs[constant]).tolist()]
    return LayerSizes(
        (len(call.outputs), len(outputs)),
        (len(call.inputs), len(kept.layers[name].inputs)),
        (large, small),
        {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )
