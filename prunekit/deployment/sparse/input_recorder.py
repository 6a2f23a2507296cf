"""Record the inputs of layers while a network runs samples.

Calls are intercepted through an attribute ``forward`` of each module, not through hooks: hooks disable torch's fast
path for transformers, so they would record another path than the one deployed. This module must not know sparse
layers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.layers.samples import Samples


@attrs.define
class LayerInputs:
    """The inputs of all calls of one layer.

    Attributes:
        shapes: the shape of the tensor of each call.
        dtype: the dtype in the last call; ``None`` without calls.
        unsupported: whether any call had other arguments than one tensor.
    """

    shapes: list[torch.Size] = attrs.field(factory=list)
    dtype: torch.dtype | None = None
    unsupported: bool = False


@contextlib.contextmanager
def intercepted_calls(modules: Mapping[str, nn.Module], seen: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``seen(name, input)`` before each call of a module; the input is ``None`` unless it is one tensor."""

    def intercepted(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            alone = len(arguments) == 1 and not options and isinstance(arguments[0], Tensor)
            seen(name, arguments[0] if alone else None)
            return forward(*arguments, **options)

        return call

    try:
        for name, module in modules.items():
            vars(module)["forward"] = intercepted(name, module.forward)
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


def record_inputs(network: nn.Module, modules: Mapping[str, nn.Module], samples: Samples) -> dict[str, LayerInputs]:
    """Run samples through a network and return the inputs of each module by name."""
    recorded = {name: LayerInputs() for name in modules}

    def note(name: str, inputs: Tensor | None) -> None:
        if inputs is None:
            recorded[name].unsupported = True
        else:
            recorded[name].shapes.append(inputs.shape)
            recorded[name].dtype = inputs.dtype

    with intercepted_calls(modules, note):
        samples.call(network)
    return recorded
