"""Masks for a model in a training loop that is not ours: one call, no task, no schedule, no run folder.

It must not know the engine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, SupportsFloat

from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion, observes
from prunekit.contracts.schedule import MaskUpdate
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import is_sharded, reshard
from prunekit.errors import ConfigError
from prunekit.layers.channels.finding import find_channel_groups
from prunekit.layers.channels.groups import ChannelGroups, by_parameter
from prunekit.layers.densities import Rule
from prunekit.layers.lookup import check_layers, find_layers, parameter_name
from prunekit.layers.samples import called_with
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.patterns import Channels, Pattern, parse_pattern
from prunekit.masks.selection import Scope
from prunekit.plugins.manager import make_manager, view_of
from prunekit.plugins.registry import collect
from prunekit.pruning.evidence import batch_evidence, run_first_entry, undisturbed
from prunekit.pruning.structure import Structure
from prunekit.pruning.update import PrunableNetwork, choose_masks


def select(
    model: nn.Module,
    criterion: str | Callable[[], Criterion] = "magnitude",
    *,
    density: SupportsFloat | Mapping[str, SupportsFloat] | None = None,
    distribution: Rule | None = None,
    keep_dense: Sequence[str] = (),
    scope: Scope | None = None,
    pattern: Pattern | str | None = None,
    batches: Iterable[Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    activations: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Masks:
    """Choose which connections of a model to keep; the model itself stays as it is, its ``.grad`` too.

    Args:
        model: any module with linear layers, convolutions or attention, or layers that a plugin knows.
        criterion: the name of one, with its default options, or a callable that makes one.
        density: kept / total in (0, 1], for all prunable layers, or by layer: a name, the end of one,
            or a glob. A layer that is not named gets no mask. ``None``: that of an N:M pattern.
        distribution: how the layers share one density, a total that is then met exactly: see
            ``prunekit.layers.densities.allocate_density``; ``None``: each layer has that density.
        keep_dense: layers that get no mask: names, globs, "first", "last"; the others get sparser, so that one
            density is met.
        scope: what competes: the connections of a "unit", of a "layer", or of all layers ("global");
            ``None``: what the criterion prefers.
        pattern: "2:4", "4x4", "units", "channels", or ``NofM(2, 4)``, ``Blocks(4, 4)``, ``Units()``, ``Channels()``;
            ``None``: unstructured. Of "channels" the masks are of more than weights: biases and batch normalisation of
            channels that are gone go with them. Layers of which no channel can go get none.
        batches: what a criterion with needs observes, a list or a loader; read once for each pass. For "channels" the
            first one is run to see where they flow.
        forward: runs the model on a batch; ``None``: ``model(batch)``, or its first entry if it is a tuple.
        loss: for criteria that need gradients.
        activations: layer -> module whose output is the layer's activation; a layer that is not
            named counts as its own activation.
        seed: of everything that is drawn.

    Returns:
        Masks by parameter name; ``apply`` or ``hold`` them.

    Raises:
        ConfigError: an unknown criterion or layer, a density outside (0, 1], data missing that the criterion needs;
            a layer that cannot be pruned as it is (see ``prunekit.layers.lookup.check_layers``) or has no values.
        MaskError: a pattern that does not fit a layer.
    """
    manager = make_manager()
    registry = collect(manager)
    make = criterion if callable(criterion) else lambda: registry.make_criterion(str(criterion))
    layers = find_layers(model, view_of(manager))
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no layer that can be pruned")
    pattern = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    structure = _structure(density, distribution, keep_dense, pattern)
    forward, channel_groups = forward or run_first_entry, None
    if isinstance(pattern, Channels):
        batches, first = _with_first(batches)
        channel_groups = _channel_groups(model, layers, view_of(manager), partial(forward, model, first))
    shapes = [view.shape(name) for name, view in layers.items()]
    others = dict(model.named_modules()).keys() - layers.keys()
    entries = structure.targets(shapes, others=others, channel_groups=channel_groups)
    targets = {layer: value for entry in entries for layer, value in entry.targets.items()}
    reshard(model)
    _check(make(), {name: layers[name] for name in targets})

    with undisturbed(model):
        chosen = choose_masks(
            PrunableNetwork(model, layers, channel_groups),
            MaskUpdate(0.0, targets, scope, pattern),
            {},
            make,
            batch_evidence(model, batches, loss=loss, forward=forward, activation_of=activations),
            Seeds(seed),
        )
    keys = {name: parameter_name(name, layers[name]) for name in targets}
    info = {"criterion": make().name, "seed": seed, "requested": {keys[name]: targets[name] for name in targets}}
    return Masks(by_parameter(layers, chosen.masks, channel_groups), info)


def _with_first(batches: Iterable[Any] | None) -> tuple[Iterable[Any], Any]:
    """Return batches and the first of them, which is among them still if they can be read only once."""
    left = iter(batches or ())
    for first in left:
        return (chain([first], left) if left is batches else batches or ()), first
    raise ConfigError("pattern 'channels' needs a batch to see where channels flow: give batches=[...]")


def _channel_groups(
    model: nn.Module, layers: Mapping[str, LayerView], views: ViewOf, run: Callable[[], Any]
) -> ChannelGroups:
    if any(is_sharded(view.weight) for view in layers.values()):
        raise ConfigError(
            "pattern 'channels' runs a copy of the whole network, but its weights are spread over processes; choose "
            "the masks before fully_shard"
        )
    samples = called_with(model, run)
    if samples is None:
        raise ConfigError("pattern 'channels' needs to see how the model is called, but forward(model, batch) does not")
    return find_channel_groups(model, samples, view_of=views)


def _structure(
    density: SupportsFloat | Mapping[str, SupportsFloat] | None,
    distribution: Rule | None,
    keep_dense: Sequence[str],
    pattern: Pattern | None,
) -> Structure:
    if isinstance(density, Mapping):
        densities = tuple((name, _number(value, name)) for name, value in density.items())
        return Structure(None, densities, distribution, tuple(keep_dense), pattern)
    one = None if density is None else _number(density, "*")
    return Structure(one, None, distribution, tuple(keep_dense), pattern)


def _number(density: SupportsFloat, name: str) -> float:
    try:
        return float(density)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch: more than one element
        raise ConfigError(f"density of {name!r} is {density!r}, expected a number in (0, 1]") from error


def _check(criterion: Criterion, layers: Mapping[str, LayerView]) -> None:
    check_layers(layers, observed=observes(criterion), computed=not criterion.needs & {"gradients", "network"})
    for name, view in layers.items():
        if any(parameter.is_meta for parameter in view.module.parameters()):
            raise ConfigError(f"layer {name!r} is on the device 'meta' and has no values; load the weights first")
        if "network" in criterion.needs and is_sharded(view.weight):
            raise ConfigError(
                f"criterion {criterion.name!r} looks at the whole network at once, but layer {name!r} is spread over "
                "processes; take another criterion, or choose the masks before fully_shard"
            )
