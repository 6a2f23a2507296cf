"""Weights that a module computes from other parameters: which of those carries the zeros.

With weight norm the weight is ``g v / |v|``, with spectral norm ``W / sigma(W)``: it is 0 where ``v`` or ``W`` is, and
nowhere else. So a mask of the computed weight is held on that parameter, and its zeros are exact in both. This
module knows ``torch.nn.utils.parametrize``; it must not know files, criteria or training.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit.distributed.dtensor import full_tensor


def carrier(module: nn.Module, name: str) -> str | None:
    """Return the name, in the module, of the parameter whose zeros are those of a computed tensor.

    It is found by trying: half of the entries of a copy, with other numbers, are set to 0.

    Args:
        module: any module.
        name: of its tensor, for example "weight".

    Returns:
        For example "parametrizations.weight.original1"; ``None`` where the tensor is not computed by a
        parametrisation, or zeros of no parameter are all and only its zeros (an orthogonal weight, for example).
    """
    if not parametrize.is_parametrized(module, name):
        return None
    parametrization = module.get_submodule("parametrizations").get_submodule(name)
    for key, parameter in parametrization.named_parameters(recurse=False):
        if _carries(parametrization, key, parameter):
            return f"parametrizations.{name}.{key}"
    return None


def _carries(parametrization: nn.Module, key: str, parameter: nn.Parameter) -> bool:
    # A copy, since looking changes some (spectral norm); on the CPU, since a model on "meta" has no values.
    trial = _copy(parametrization).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*trial.parameters(), *trial.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
        dropped = torch.arange(parameter.numel()).reshape(parameter.shape) % 2 == 1
        trial.get_parameter(key).masked_fill_(dropped, 0)
        weight = trial()
    return weight.shape == parameter.shape and torch.equal(weight == 0, dropped)


def is_finite_under(model: nn.Module, name: str, key: str, mask: Tensor) -> bool:
    """Say whether a computed tensor has only numbers under a mask: of a unit without connections the norm is 0.

    Args:
        model: the model.
        name: of the tensor in it.
        key: of the parameter that carries its zeros.
        mask: True = keep.
    """
    path, _, tensor = name.rpartition(".")
    parametrization = _copy(model.get_submodule(f"{path}.parametrizations.{tensor}".lstrip("."))).eval()
    with torch.no_grad():
        carrying = parametrization.get_parameter(key.rpartition(".")[2])
        carrying.masked_fill_(mask.logical_not().to(carrying.device), 0)
        return bool(parametrization().isfinite().all())


def _copy(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters are ordinary tensors, wherever those of the original lie."""
    known = {id(parameter): nn.Parameter(full_tensor(parameter).clone()) for parameter in module.parameters()}
    return copy.deepcopy(module, known)


def copy_of(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network, also of one whose weights were computed by hooks with a gradient.

    ``torch.nn.utils.prune`` and the old weight norm leave such a tensor in the module, which torch does not copy; they
    compute it again at the next call.
    """
    tensors = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    known = {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}
    return copy.deepcopy(network, known)


def carriers(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (name of a computed tensor, name of the parameter that carries its zeros) in a model."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, _ in module.get_submodule("parametrizations").named_children():
                key = carrier(module, name)
                if key is not None:
                    yield f"{path}.{name}".lstrip("."), f"{path}.{key}".lstrip(".")
