"""Which layers a network has, what they are called, and which of them can be pruned.

This module knows names and modules; it must not know what a view makes of a layer.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from prunekit.errors import ConfigError, nearest
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.masks.reparametrized import carrier


def all_views(network: nn.Module, view_of: ViewOf = core_view) -> Iterator[tuple[str, LayerView]]:
    """Yield every weight of a network that can be pruned with the name of its layer, shared weights at each module."""
    for name, module in network.named_modules():
        found = view_of(module)
        for view in () if found is None else (found,) if isinstance(found, LayerView) else found:
            yield ".".join(filter(None, (name, view.part))), view


def find_layers(network: nn.Module, view_of: ViewOf = core_view) -> dict[str, LayerView]:
    """Return the prunable layers of a network by module name, in the order of the modules.

    A module that appears twice, or a weight that two modules share, is one layer, under its first name. The
    weights of a module that has several are layers under its name and their part: "attention.in_proj". Looks
    at no value of a weight, so the network may be on the device "meta".
    """
    layers: dict[str, LayerView] = {}
    known: set[int] = set()
    for name, view in all_views(network, view_of):
        # What is no parameter is made anew at each look, and looking may change it (spectral norm).
        weight = parameter_of(view)
        if weight is None or id(weight) not in known:
            known.add(id(weight))
            layers[name] = view
    return layers


def parameter_name(layer: str, view: LayerView) -> str:
    """Return the name of a layer's weight in the network's ``state_dict``."""
    module = layer.removesuffix(view.part).removesuffix("." if view.part else "")
    return f"{module}.{view.parameter}" if module else view.parameter


def shown(layer: str) -> str:
    """Return what people call a layer; the one that is itself the network has no name."""
    return layer or "the network"


def check_layers(layers: Mapping[str, LayerView], *, observed: bool, computed: bool = False) -> None:
    """Refuse layers that cannot be pruned as they are.

    Args:
        layers: those that are to be pruned.
        observed: whether a criterion is to see what comes into them and out of them.
        computed: whether weights that are computed will do, where the zeros of one parameter are theirs.

    Raises:
        ConfigError: a weight without a shape (a lazy module), a weight that is computed from other parameters
            (weight norm, ``torch.nn.utils.prune``), or a layer whose inputs cannot be observed; names the layer.
    """
    for name, view in layers.items():
        weight = parameter_of(view)
        if weight is None and computed and carrier(view.module, view.parameter):
            continue
        if weight is None:
            raise ConfigError(
                f"layer {name!r} computes its {view.parameter} from other parameters; make it one again "
                f"before pruning, with {_way_back(view)}, or leave the layer out"
            )
        if is_lazy(weight):
            raise ConfigError(f"layer {name!r} has no shape yet; run one batch through the model first")
        if observed and not view.observable:
            raise ConfigError(
                f"layer {name!r} computes inside {type(view.module).__name__}, where its inputs cannot be observed; "
                "leave it out, or take a criterion that needs weights only, such as 'magnitude'"
            )


def parameter_of(view: LayerView) -> nn.Parameter | None:
    """Return the parameter that is a view's weight; ``None`` where the weight is made of others."""
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
    """Return the layers that a user means, in the order of the network.

    A pattern is a full name, an alias of the task (which may stand for a glob), the unambiguous end of a dotted
    name ("f" for "features.f"), or a glob ("conv*").

    Raises:
        ConfigError: when nothing, or more than one layer where one is meant, answers to it.
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
        raise ConfigError(f"layer {pattern!r} could be {', '.join(ends)}; write the full name")
    matches = [name for name in known if fnmatchcase(name, pattern)]
    if not matches:
        raise ConfigError(f"no prunable layer is called {pattern!r}{nearest(pattern, [*known, *aliases])}")
    return matches


def masked_layers(network: nn.Module, masks: Masks, view_of: ViewOf) -> dict[str, LayerView]:
    """Return the layers that have a mask, by name; those that share a weight all count."""
    masked = {id(parameter) for parameter, _ in match(masks.tensors, network).values()}
    layers: dict[str, LayerView] = {}
    for name, module in network.named_modules():
        found = view_of(module)
        for view in [] if found is None else [found] if isinstance(found, LayerView) else found:
            parameter = parameter_of(view)
            # Of a weight that is computed the mask is on one of the parameters it is computed from.
            own = module.parameters() if parameter is None else [parameter]
            if any(id(each) in masked for each in own):
                # The output projection of attention is a linear layer, too; it is never called, and comes second.
                layers.setdefault(".".join(filter(None, (name, view.part))), view)
    return layers
