"""Find the prunable layers of a network, by name.

This module knows names and modules; it must not know how a view sees a layer.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from prunekit.errors import ConfigError, nearest
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.masks.reparametrized import carrier


def all_views(network: nn.Module, view_of: ViewOf = core_view) -> Iterator[tuple[str, LayerView]]:
    """Yield (layer name, view) for every prunable weight of a network, shared weights once for each module."""
    for name, module in network.named_modules():
        found = view_of(module)
        if found is None or isinstance(found, ChannelFollower):
            continue
        for view in (found,) if isinstance(found, LayerView) else found:
            yield ".".join(filter(None, (name, view.part))), view


def find_layers(network: nn.Module, view_of: ViewOf = core_view) -> dict[str, LayerView]:
    """Return the prunable layers of a network: name -> view, in the order of the modules.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    >>> [(name, view.kind) for name, view in find_layers(network).items()]
    [('0', 'convolution'), ('3', 'linear')]

    A module that appears twice, or a weight that two modules share, is one layer, under its first name. A module with
    several weights has a layer for each, named by module and part: "attention.in_proj". The values of the weights are
    not read, so the network may be on the device "meta".
    """
    layers: dict[str, LayerView] = {}
    known: set[int] = set()
    for name, view in all_views(network, view_of):
        # A computed weight is a new tensor at each access, and the access may change it (spectral norm).
        weight = parameter_of(view)
        if weight is None or id(weight) not in known:
            known.add(id(weight))
            layers[name] = view
    return layers


def parameter_name(layer: str, view: LayerView) -> str:
    """Return the name of a layer's weight in the network's ``state_dict``, for example "fc.weight"."""
    module = layer.removesuffix(view.part).removesuffix("." if view.part else "")
    return f"{module}.{view.parameter}" if module else view.parameter


def display_name(layer: str) -> str:
    """Return the name under which a layer is displayed; a network that is itself a layer has an empty name."""
    return layer or "the network"


def check_layers(layers: Mapping[str, LayerView], *, observed: bool, computed: bool = False) -> None:
    """Raise an error if a layer cannot be pruned as it is.

    Args:
        layers: layer name -> view, the layers to prune.
        observed: whether a criterion observes the inputs and outputs of the layers.
        computed: whether to accept a computed weight whose zeros are those of one parameter (weight norm).

    Raises:
        ConfigError: a layer has a lazy weight without a shape, a weight computed from other parameters (weight norm,
            ``torch.nn.utils.prune``), or inputs that cannot be observed. The message names the layer.
    """
    for name, view in layers.items():
        weight = parameter_of(view)
        if weight is None and computed and carrier(view.module, view.parameter):
            continue
        if weight is None:
            raise ConfigError(
                f"layer {name!r} is parametrized: its {view.parameter} is computed from other parameters; "
                f"call {_way_back(view)} before pruning, or exclude the layer"
            )
        if is_lazy(weight):
            raise ConfigError(f"layer {name!r} has no shape yet; run one batch through the model first")
        if observed and not view.observable:
            raise ConfigError(
                f"layer {name!r} is computed inside {type(view.module).__name__}, where its inputs cannot be observed; "
                "exclude it, or use a criterion that needs only weights, such as 'magnitude'"
            )


def parameter_of(view: LayerView) -> nn.Parameter | None:
    """Return the parameter that holds a view's weight; ``None`` if the weight is computed from other parameters."""
    return dict(view.module.named_parameters(remove_duplicate=False)).get(view.parameter)


def _way_back(view: LayerView) -> str:
    if parametrize.is_parametrized(view.module, view.parameter):
        function = "parametrize.remove_parametrizations"
    elif hasattr(view.module, f"{view.parameter}_mask"):
        function = "prune.remove"
    else:
        function = "remove_weight_norm or remove_spectral_norm"
    return f"torch.nn.utils.{function}"


def resolve(pattern: str, names: Iterable[str], aliases: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the layers that a user's pattern matches, in the order of the network.

    >>> resolve("f", ["features.conv", "features.f"])
    ['features.f']

    Args:
        pattern: a full name, an alias of the task, the unambiguous end of a dotted name, or a glob ("conv*").
        names: names of all prunable layers, in the order of the network.
        aliases: alias -> layer name or glob.

    Raises:
        ConfigError: the pattern matches no layer, or the end of several names.
    """
    known = list(names)
    aliases = aliases or {}
    if pattern in known:
        return [pattern]
    if pattern in aliases:
        meant = aliases[pattern]
        found = [meant] if meant in known else [name for name in known if fnmatchcase(name, meant)]
        if found:
            return found
    ends = [name for name in known if name.endswith("." + pattern)]
    if len(ends) == 1:
        return ends
    if len(ends) > 1:
        raise ConfigError(f"layer {pattern!r} is ambiguous: it could be {', '.join(ends)}; write the full name")
    matches = [name for name in known if fnmatchcase(name, pattern)]
    if not matches:
        raise ConfigError(f"no prunable layer is called {pattern!r}{nearest(pattern, [*known, *aliases])}")
    return matches


def masked_layers(network: nn.Module, masks: Masks, view_of: ViewOf) -> dict[str, LayerView]:
    """Return the layers that have a mask: name -> view, all layers where several share a masked weight."""
    masked = {id(parameter) for parameter, _ in match(masks.tensors, network).values()}
    layers: dict[str, LayerView] = {}
    for name, view in all_views(network, view_of):
        parameter = parameter_of(view)
        # The mask of a computed weight belongs to one of the parameters that it is computed from.
        sources = view.module.parameters() if parameter is None else [parameter]
        if any(id(source) in masked for source in sources):
            # The output projection of attention is found a second time as a linear layer, which is never called.
            layers.setdefault(name, view)
    return layers
