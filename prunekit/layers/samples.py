"""What a network is called with, by the batch: real inputs of a task, or random ones of a given shape.

Whoever measures, converts or compares a network takes its inputs from here. This module must not know masks, files or
how a network was pruned.
"""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import ConfigError


@attrs.frozen(eq=False)
class Samples:
    """The arguments of one call of a network: a batch of samples.

    A tensor whose first dimension is ``count`` has one entry for each sample; others belong to all of them.

    Attributes:
        arguments: the positional ones: tensors, nested tuples, lists, dicts of tensors, anything else.
        keywords: the others, by name.
        count: samples in the batch: the first dimension of the first tensor.

    Raises:
        ConfigError: there is no such tensor, or it is empty.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = attrs.field(factory=dict)
    count: int = attrs.field(init=False)

    @count.default
    def _size(self) -> int:
        tensors = [leaf for leaf in self._leaves() if isinstance(leaf, Tensor) and leaf.dim()]
        if not tensors or not len(tensors[0]):
            raise ConfigError("the network is called with no batch of tensors; give it one as its first argument")
        return len(tensors[0])

    @classmethod
    def of(cls, given: Any) -> "Samples":
        """Return what a user means: a tuple of arguments, a mapping of named ones, samples, or one argument alone."""
        if isinstance(given, Samples):
            return given
        if isinstance(given, Mapping):
            return cls((), given)
        return cls(given if isinstance(given, tuple) else (given,))

    def _leaves(self) -> list[Any]:
        leaves: list[Any] = pytree.tree_leaves((self.arguments, dict(self.keywords)))
        return leaves

    def is_batched(self, value: Any) -> bool:
        """Say whether a value among the arguments is a tensor with one entry for each sample."""
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.count

    def take(self, count: int) -> "Samples":
        """Return the first ``count`` samples, beginning again from the first where there are fewer."""
        index = torch.arange(count) % self.count

        def taken(value: Any) -> Any:
            return value[index.to(value.device)] if self.is_batched(value) else value

        return Samples(*pytree.tree_map(taken, (self.arguments, dict(self.keywords))))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Samples":
        """Return the same samples on a device, floating-point ones as ``dtype`` where one is given."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return Samples(*pytree.tree_map(moved, (self.arguments, dict(self.keywords))))

    def call(self, network: Any) -> Any:
        """Call a network, or what was made of it, without gradients; it may change copies of the tensors in place."""
        arguments, keywords = pytree.tree_map_only(Tensor, torch.clone, (self.arguments, dict(self.keywords)))
        with torch.no_grad():
            return network(*arguments, **keywords)

    def through(self, network: Any) -> tuple[Tensor, ...]:
        """Call a network, and return every tensor of what it gives."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.call(network)) if isinstance(leaf, Tensor))


MOST = 32
"""Samples of a calibration batch that are kept: what the largest batch that is measured needs."""


class _CalledError(Exception):
    """Ends a forward pass of which only the arguments are wanted."""


def called_with(network: nn.Module, run: Callable[[], Any]) -> Samples | None:
    """Return what a network is called with first when something is run, up to ``MOST`` samples.

    Args:
        network: any module; nothing is computed in it.
        run: is ended by the call. Without one, it runs to its end, and the result is ``None``.
    """
    called: list[Samples] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        called.append(Samples(arguments, keywords))
        raise _CalledError

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    except _CalledError:
        pass
    finally:
        hook.remove()
    return called[0].take(min(called[0].count, MOST)) if called else None
