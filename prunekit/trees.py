"""Batches: a tensor, or nested tuples, lists and dicts of tensors and whatever else.

It must not know what is in them.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list | dict):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors_in(part)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch of the same form with every tensor changed; named tuples stay such, what is no tensor stays."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple | list):
        parts = [map_tensors(change, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return {key: map_tensors(change, part) for key, part in batch.items()} if isinstance(batch, dict) else batch
