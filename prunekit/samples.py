"""What a network is called with, by the batch: real inputs of a task, or random ones of a given shape.

Whoever measures, converts or compares a network takes its inputs from here. This module must not know masks, files or
how a network was pruned.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import ConfigError
from prunekit.seeds import Seeds
from prunekit.tasks import Task

MOST = 32
"""Samples of a calibration batch that are kept: what the largest batch that is measured needs."""

_FORM = "expected sizes such as 3x55x47, or 128:0..999 for whole numbers from 0 to 999"


@attrs.frozen(eq=False)
class Samples:
    """The arguments of one call of a network: a batch of samples.

    A tensor whose first dimension is ``count`` has one entry for each sample; others belong to all of them.

    Attributes:
        arguments: the positional ones: tensors, nested tuples, lists, dicts of tensors, anything else.
        keywords: the others, by name.
        count: samples in the batch: the first dimension of the first tensor.
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

    def in_one(self, network: nn.Module) -> Any:
        """Return the arguments as one object: a tuple, or where some go by name, all of them by name."""
        if not self.keywords:
            return self.arguments
        return dict(inspect.signature(network.forward).bind(*self.arguments, **self.keywords).arguments)

    def through(self, network: Any) -> tuple[Tensor, ...]:
        """Call a network, or what was made of it, and return every tensor of what it gives, without gradients."""
        with torch.no_grad():
            outputs = network(*self.arguments, **self.keywords)
        return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))


class _CalledError(Exception):
    """Ends a forward pass of which only the arguments are wanted."""


def task_samples(task: Task, model: nn.Module, seeds: Seeds) -> Samples:
    """Return what the deployed network is called with on the first calibration batch of a task, up to ``MOST`` samples.

    Args:
        task: set up.
        model: in evaluation mode, on the CPU.
        seeds: of the run.

    Raises:
        ConfigError: there is no calibration batch, or ``Task.forward`` does not call the deployed network.
    """
    batches = task.batches("calibration", 0, seeds)
    if not len(batches):
        raise ConfigError(f"task {task.name!r} has no calibration batch to take sample inputs from")
    called: list[Samples] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        called.append(Samples(arguments, keywords))
        raise _CalledError

    hook = task.deployed(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            task.forward(model, batches[0])
    except _CalledError:
        pass
    finally:
        hook.remove()
    if not called:
        raise ConfigError(
            f"the forward of task {task.name!r} does not call its deployed network, so its inputs are not known; "
            "let it call that module, or export the network as file.py:function with --input"
        )
    return called[0].take(min(called[0].count, MOST))


def random_samples(shapes: Sequence[str], dtype: torch.dtype) -> Samples:
    """Return a batch of ``MOST`` random samples, the same ones every time.

    Args:
        shapes: one for each argument of the network: the shape of one sample, without the batch. "3x55x47" are normal
            numbers, "128:0..999" whole numbers (token ids) from 0 to 999.
        dtype: of the normal numbers.

    Raises:
        ConfigError: a shape that is not understood.
    """
    return Samples(tuple(_random(text, number, dtype) for number, text in enumerate(shapes)))


def _random(text: str, number: int, dtype: torch.dtype) -> Tensor:
    found = re.fullmatch(r"([1-9]\d*(?:x[1-9]\d*)*)(?::(\d+)\.\.(\d+))?", text, re.ASCII)
    if found is None:
        raise ConfigError(f"--input is {text!r}, {_FORM}; the batch is not counted")
    shape = (MOST, *map(int, found[1].split("x")))
    generator = Seeds(0).generator("sample inputs", number)
    if found[2] is None:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    low, high = int(found[2]), int(found[3])
    if low > high:
        raise ConfigError(f"--input is {text!r}, which has no whole number, {_FORM}")
    return torch.randint(low, high + 1, shape, generator=generator)
