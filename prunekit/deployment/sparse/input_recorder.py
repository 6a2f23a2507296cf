"""What goes into the layers of a network while it runs samples.

Layers are watched through an attribute ``forward`` of the module, not through hooks: torch's fast path for
transformers is not taken where there are hooks, so the layers would be watched on another path than they take. This
module must not know sparse layers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.layers.samples import Samples


@attrs.define
class Calls:
    """The calls of one layer.

    Attributes:
        shapes: of the one tensor of each call.
        dtype: of the last one.
        odd: whether there was a call with anything else.
    """

    shapes: list[torch.Size] = attrs.field(factory=list)
    dtype: torch.dtype | None = None
    odd: bool = False


@contextlib.contextmanager
def watching(modules: Mapping[str, nn.Module], seen: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``seen(name, input)`` before each call of a module; the input is ``None`` where it is not one tensor."""

    def watched(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            alone = len(arguments) == 1 and not options and isinstance(arguments[0], Tensor)
            seen(name, arguments[0] if alone else None)
            return forward(*arguments, **options)

        return call

    try:
        for name, module in modules.items():
            vars(module)["forward"] = watched(name, module.forward)
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


def find_calls(network: nn.Module, modules: Mapping[str, nn.Module], samples: Samples) -> dict[str, Calls]:
    """Return how each module is called while the network runs samples."""
    calls = {name: Calls() for name in modules}

    def note(name: str, inputs: Tensor | None) -> None:
        if inputs is None:
            calls[name].odd = True
        else:
            calls[name].shapes.append(inputs.shape)
            calls[name].dtype = inputs.dtype

    with watching(modules, note):
        samples.call(network)
    return calls
