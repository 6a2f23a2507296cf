"""The arguments of a call of a network: a batch of real inputs of a task, or of random ones of a given shape.

Measuring, converting and comparing networks take their inputs from here. This module must not know masks, files or how
a network was pruned.
"""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.distributed.torch_internals import tree_leaves, tree_map
from prunekit.errors import ConfigError


@attrs.frozen(eq=False)
class Samples:
    """The arguments of one call of a network: a batch of samples.

    >>> samples = Samples.of(torch.randn(8, 3, 32, 32))
    >>> outputs = samples.take(2).call(nn.Conv2d(3, 4, 3))

    A tensor whose first dimension is ``count`` has one entry for each sample; others belong to all samples.

    Attributes:
        arguments: positional arguments: tensors, nested tuples, lists and dicts of tensors, or anything else.
        keywords: keyword arguments by name.
        count: number of samples in the batch: the first dimension of the first tensor.

    Raises:
        ConfigError: no argument is a tensor with a first dimension, or the first one is empty.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = attrs.field(factory=dict)
    count: int = attrs.field(init=False)

    @count.default
    def _size(self) -> int:
        tensors = [leaf for leaf in self._leaves() if isinstance(leaf, Tensor) and leaf.dim()]
        if not tensors or not len(tensors[0]):
            raise ConfigError("the network needs a batch of tensors, but got none; pass one as its first argument")
        return len(tensors[0])

    @classmethod
    def of(cls, given: Any) -> "Samples":
        """Return samples from a tuple of arguments, a mapping of keyword arguments, one argument, or samples."""
        if isinstance(given, Samples):
            return given
        if isinstance(given, Mapping):
            return cls((), given)
        return cls(given if isinstance(given, tuple) else (given,))

    def _leaves(self) -> list[Any]:
        return tree_leaves((self.arguments, dict(self.keywords)))

    def is_batched(self, value: Any) -> bool:
        """Return whether a value among the arguments is a tensor with one entry for each sample."""
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.count

    def take(self, count: int) -> "Samples":
        """Return the first ``count`` samples, repeated from the first one if there are fewer."""
        index = torch.arange(count) % self.count

        def taken(value: Any) -> Any:
            return value[index.to(value.device)] if self.is_batched(value) else value

        return Samples(*tree_map(taken, (self.arguments, dict(self.keywords))))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Samples":
        """Return the samples on a device, floating-point tensors as ``dtype`` if one is given."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return Samples(*tree_map(moved, (self.arguments, dict(self.keywords))))

    def call(self, network: Any) -> Any:
        """Call a network, or an exported form of it, without gradients, on copies that it may change in place."""

        def copied(value: Any) -> Any:
            return torch.clone(value) if isinstance(value, Tensor) else value

        arguments, keywords = tree_map(copied, (self.arguments, dict(self.keywords)))
        with torch.no_grad():
            return network(*arguments, **keywords)

    def through(self, network: Any) -> tuple[Tensor, ...]:
        """Call a network and return all tensors of its result."""
        return tuple(leaf for leaf in tree_leaves(self.call(network)) if isinstance(leaf, Tensor))


MOST = 32
"""Most samples kept of a calibration batch: enough for the largest batch that is measured."""


class _CalledError(Exception):
    """Ends a forward pass whose arguments are known and whose result is not needed."""


def called_with(network: nn.Module, run: Callable[[], Any]) -> Samples | None:
    """Return the arguments of the first call of a network while ``run`` runs, up to ``MOST`` samples.

    Args:
        network: any module; nothing is computed in it.
        run: a function that calls the network; the first call ends it. ``None`` is returned if it never calls it.
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
