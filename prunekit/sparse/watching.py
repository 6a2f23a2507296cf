"""What goes into the layers of a network while it runs a sample.

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

from prunekit.errors import ConfigError


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


def find_calls(network: nn.Module, modules: Mapping[str, nn.Module], sample: Any) -> dict[str, Calls]:
    """Return how each module is called while the network runs a sample."""
    calls = {name: Calls() for name in modules}

    def note(name: str, inputs: Tensor | None) -> None:
        if inputs is None:
            calls[name].odd = True
        else:
            calls[name].shapes.append(inputs.shape)
            calls[name].dtype = inputs.dtype

    with watching(modules, note):
        run(network, sample)
    return calls


def run(network: nn.Module, sample: Any) -> Any:
    """Run a network on a tensor, a tuple of positional arguments, or a mapping of named ones."""
    with torch.no_grad():
        if isinstance(sample, Mapping):
            return network(**sample)
        return network(*sample) if isinstance(sample, tuple) else network(sample)


def repeated(sample: Any, batch_size: int) -> Any:
    """Return a sample of another batch size: its own entries, again and again, along the first dimension.

    Raises:
        ConfigError: when it has no tensor with a first dimension.
    """
    values = (
        list(sample.values()) if isinstance(sample, Mapping) else sample if isinstance(sample, tuple) else (sample,)
    )
    sizes = [len(value) for value in values if isinstance(value, Tensor) and value.dim()]
    if not sizes or not sizes[0]:
        raise ConfigError(
            "the sample input has no samples; give a tensor whose first dimension is the batch, a tuple of such, "
            "or a mapping of names to such"
        )

    def repeat(value: Any) -> Any:
        # A tensor that is as long as the first one has a batch; any other is the same for all samples.
        batched = isinstance(value, Tensor) and value.dim() and len(value) == sizes[0]
        return value[torch.arange(batch_size) % sizes[0]] if batched else value

    if isinstance(sample, Mapping):
        return {name: repeat(value) for name, value in sample.items()}
    return tuple(map(repeat, sample)) if isinstance(sample, tuple) else repeat(sample)
