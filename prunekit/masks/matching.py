"""Find the parameter that each mask belongs to.

This module knows tensors, names and models. It must not know files, optimisers, criteria or training.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunekit.distributed.dtensor import reshard
from prunekit.distributed.torch_internals import COMPILED
from prunekit.errors import MaskError
from prunekit.masks.reparametrized import carriers, is_finite_under

_Weight = TypeVar("_Weight", bound=Tensor)


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers, ``module.`` and ``_orig_mod.``.

    >>> plain_name("module._orig_mod.features._orig_mod.0.weight")
    'features.0.weight'
    """
    parts = [part for part in name.split(".") if part != COMPILED]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def match(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Find the parameter of each mask; tied weights are one parameter under any of their names.

        for name, (parameter, mask) in match(masks.tensors, model).items(): ...

    The mask of a computed weight (weight norm) belongs to the parameter that carries its zeros.

    Args:
        masks: parameter name -> bool of the parameter's shape. Names match with or without ``module.`` and
            ``_orig_mod.`` on either side; an exact match takes precedence.
        model: any module, wrapped, compiled or plain.

    Returns:
        The parameter's name in the model -> (parameter, mask), in the order of the masks.

    Raises:
        MaskError: masks fit no parameter, have another shape or contradict each other; all of them are listed.
    """
    reshard(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    computed = dict(carriers(model))
    matched = match_names(masks, parameters | {name: parameters[key] for name, key in computed.items()})
    for name in computed.keys() & matched.keys():
        if not is_finite_under(model, name, computed[name], matched[name][1]):
            raise MaskError(
                f"{name!r} would be computed as 0 / 0, because its mask keeps no connection of an output unit; keep at "
                "least one connection of each unit, for example with scope='unit'"
            )
    return matched


def match_names(masks: Mapping[str, Tensor], parameters: Mapping[str, _Weight]) -> dict[str, tuple[_Weight, Tensor]]:
    """Find the weight of each mask in a state dict, like ``match`` in a model."""
    by_plain_name: dict[str, dict[int, str]] = {}
    for name, parameter in parameters.items():
        by_plain_name.setdefault(plain_name(name), {}).setdefault(id(parameter), name)
    found: dict[int, tuple[str, Tensor]] = {}
    problems = []
    for name, mask in masks.items():
        candidates = [name] if name in parameters else list(by_plain_name.get(plain_name(name), {}).values())
        if len(candidates) != 1:
            problems.append(_not_found(name, candidates, parameters))
            continue
        parameter = parameters[candidates[0]]
        first, known = found.setdefault(id(parameter), (candidates[0], mask))
        if is_lazy(parameter):
            problems.append(f"{name!r} has no shape yet, run one batch through the model first")
        elif parameter.shape != mask.shape:
            problems.append(f"{name!r} has a mask of {list(mask.shape)} for a weight of {list(parameter.shape)}")
        elif not parameter.is_floating_point():
            problems.append(f"{name!r} is {parameter.dtype}, which cannot be masked")
        elif not same_mask(known, mask):
            problems.append(f"{name!r} and {first!r} are one weight with two different masks")
    if problems:
        raise MaskError(
            f"masks do not fit the model: {'; '.join(problems)}; compare their names with those of the weights"
        )
    return {name: (parameters[name], mask) for name, mask in found.values()}


def nonzero_dropped(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the weights of a state dict that are dropped by a mask but not zero, by the weight's name.

    Raises:
        MaskError: see ``match``.
    """
    matched = match_names(masks, weights)
    return {name: int(weight[~mask].count_nonzero()) for name, (weight, mask) in matched.items()}


def _not_found(name: str, candidates: list[str], parameters: Iterable[str]) -> str:
    if candidates:
        return f"{name!r} could be {' or '.join(candidates)}"
    module, dot, last = name.rpartition(".")
    if any(known.startswith(f"{module}{dot}parametrizations.{last}.") for known in parameters):
        return (
            f"{name!r} is parametrized, and no parameter has the same zeros; call "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    return f"no parameter {name!r}"


def same_mask(first: Tensor, second: Tensor) -> bool:
    """Return whether two masks are equal, on any devices."""
    return first is second or (first.shape == second.shape and torch.equal(first, second.to(first.device)))
