"""Masks for a model in a training loop of the user's own: one call, without a task, a schedule or a run folder.

It must not know how runs work.
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
    """Choose which connections of a model to keep, by default those with the largest weights; the model is not changed.

    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> masks = select(model, density=0.25)
    >>> masks.tensors["0.weight"].sum(), masks.density()
    (tensor(8), 0.25)

    A criterion that needs data observes batches, here the inputs of pairs (inputs, labels):

        masks = select(model, "wanda", density={"0": 0.5}, batches=loader)
        masks.apply(model)

    Args:
        model: any module with linear layers, convolutions or attention, or with layers of an installed plugin.
        criterion: a criterion's name, for its default options, or a callable that returns a fresh criterion.
        density: kept / total, in (0, 1], for all prunable layers; or a mapping from layer names, ends of names or
            globs, and other layers get no mask. ``None``: the density of an N:M pattern.
        distribution: how the layers share one density, which is then their exact total: "uniform", "erdos-renyi",
            "erdos-renyi-kernel"; ``None``: each layer has that density.
        keep_dense: layers that get no mask: names, globs, "first", "last"; the others become sparser, so that the total
            is the same.
        scope: which connections compete: those of a "unit", of a "layer", or of all layers ("global"); ``None``: the
            criterion's own scope.
        pattern: "2:4", "4x4" (rows x columns), "units" or "channels", or a record such as ``NofM(2, 4)``; ``None``:
            unstructured. With "channels" there are also masks of biases and normalisations, for channels that are
            removed; layers of which no channel can be removed get no mask.
        batches: for a criterion that needs data: a list or a loader, read once for each pass. For "channels" the model
            runs on the first batch, to trace its channels.
        forward: runs the model on a batch; ``None``: ``model(batch)``, or its first entry if it is a tuple or list.
        loss: for a criterion that needs gradients: ``loss(model, batch)`` returns a scalar.
        activations: layer -> module whose output is the layer's activation; other layers use their own output.
        seed: the seed of everything that is drawn.

    Returns:
        Masks by parameter name, bool of the parameter's shape, True = keep; ``apply`` or ``hold`` them.

    Raises:
        ConfigError: an unknown criterion or layer, a structure that contradicts itself or does not fit the model (see
            ``prunekit.pruning.structure``), missing data, or a layer that cannot be pruned.
        DataError: values that the criterion cannot use.
        MaskError: a layer cannot keep the requested number of connections in the pattern.
        PluginError: a criterion returns unusable scores or masks.
    """
    manager = make_manager()
    views = view_of(manager)
    make_criterion = criterion if callable(criterion) else partial(collect(manager).make_criterion, str(criterion))
    layers = find_layers(model, views)
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no prunable layer")
    pattern = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    structure = _structure(density, distribution, keep_dense, pattern)
    channel_groups = None
    if isinstance(pattern, Channels):
        batches, first = _with_first(batches)
        channel_groups = _channel_groups(model, layers, views, partial(forward or run_first_entry, model, first))
    prunable = PrunableNetwork(model, layers, channel_groups)
    targets = _targets(prunable, structure)
    reshard(model)
    _check(make_criterion(), {name: layers[name] for name in targets})
    with undisturbed(model):
        evidence = batch_evidence(model, batches, loss=loss, forward=forward, activation_of=activations)
        update = MaskUpdate(0.0, targets, scope, pattern)
        chosen = choose_masks(prunable, update, {}, make_criterion, evidence, Seeds(seed))
    requested = {parameter_name(name, layers[name]): density for name, density in targets.items()}
    info = {"criterion": make_criterion().name, "seed": seed, "requested": requested}
    return Masks(by_parameter(layers, chosen.masks, channel_groups), info)


def _with_first(batches: Iterable[Any] | None) -> tuple[Iterable[Any], Any]:
    """Return batches and the first one, which the batches still contain if they can be read only once."""
    rest = iter(batches or ())
    for first in rest:
        return (chain([first], rest) if rest is batches else batches or ()), first
    raise ConfigError("pattern 'channels' needs a batch to trace the channels of the model: give batches=[...]")


def _channel_groups(
    model: nn.Module, layers: Mapping[str, LayerView], views: ViewOf, run: Callable[[], Any]
) -> ChannelGroups:
    if any(is_sharded(view.weight) for view in layers.values()):
        raise ConfigError(
            "pattern 'channels' runs a copy of the whole model, but its weights are sharded; choose the masks before "
            "fully_shard"
        )
    samples = called_with(model, run)
    if samples is None:
        raise ConfigError("pattern 'channels' traces how forward calls the model, but forward(model, batch) does not")
    return find_channel_groups(model, samples, view_of=views)


def _targets(prunable: PrunableNetwork, structure: Structure) -> dict[str, float]:
    """Return layer -> density, in the order of pruning."""
    shapes = [view.shape(name) for name, view in prunable.layers.items()]
    others = dict(prunable.module.named_modules()).keys() - prunable.layers.keys()
    entries = structure.targets(shapes, others=others, channel_groups=prunable.channel_groups)
    return {layer: density for entry in entries for layer, density in entry.targets.items()}


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
            raise ConfigError(f"layer {name!r} is on the device 'meta' and has no values; load its weights first")
        if "network" in criterion.needs and is_sharded(view.weight):
            raise ConfigError(
                f"criterion {criterion.name!r} looks at the whole model at once, but layer {name!r} is sharded; use "
                "another criterion, or choose the masks before fully_shard"
            )
