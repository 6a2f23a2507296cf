"""Find the parameter that carries the zeros of a weight computed from other parameters.

With weight norm the weight is ``g v / |v|``, with spectral norm ``W / sigma(W)``: it is 0 exactly where ``v`` or ``W``
is 0. A mask of the computed weight is therefore held on that parameter, and its zeros are exact in both. This module
knows ``torch.nn.utils.parametrize``; it must not know files, criteria or training.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit.distributed.dtensor import full_tensor


def carrier(module: nn.Module, name: str) -> str | None:
    """Return the name, within a module, of the parameter that carries the zeros of a computed tensor.

    >>> carrier(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "weight")
    'parametrizations.weight.original1'

    It is found by trial: half of the entries of a copy with random values are set to 0.

    Args:
        module: any module.
        name: name of its tensor, for example "weight".

    Returns:
        The name; ``None`` if the tensor is not parametrized, or if no parameter has exactly its zeros (an orthogonal
        weight, for example).
    """
    if not parametrize.is_parametrized(module, name):
        return None
    parametrization = module.get_submodule("parametrizations").get_submodule(name)
    for key, parameter in parametrization.named_parameters(recurse=False):
        if _carries(parametrization, key, parameter):
            return f"parametrizations.{name}.{key}"
    return None


def _carries(parametrization: nn.Module, key: str, parameter: nn.Parameter) -> bool:
    # A copy, because computing changes some (spectral norm); on the CPU, because a model on "meta" has no values.
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
    """Return whether a computed tensor is finite under a mask: the norm of a unit without connections is 0.

    Args:
        model: the model.
        name: name of the tensor in it.
        key: name of the parameter that carries its zeros.
        mask: bool of the tensor's shape, True = keep.
    """
    path, _, tensor = name.rpartition(".")
    parametrization = _copy(model.get_submodule(f"{path}.parametrizations.{tensor}".lstrip("."))).eval()
    with torch.no_grad():
        carrying = parametrization.get_parameter(key.rpartition(".")[2])
        carrying.masked_fill_(mask.logical_not().to(carrying.device), 0)
        return bool(parametrization().isfinite().all())


def _copy(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters are ordinary tensors, even if those of the original are sharded."""
    known = {id(parameter): nn.Parameter(full_tensor(parameter).clone()) for parameter in module.parameters()}
    return copy.deepcopy(module, known)


def copy_of(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network, including one whose weights hooks compute with a gradient.

    ``torch.nn.utils.prune`` and the old weight norm store such a tensor in the module, which torch refuses to copy. The
    copy computes it again at its next call.
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
