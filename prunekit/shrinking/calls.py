"""Calling a network with the same samples again and again. This module must not know what for."""

from collections.abc import Mapping
from typing import Any, Self

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@attrs.frozen(eq=False)
class Call:
    """What a network is called with.

    Attributes:
        arguments: the positional arguments.
        keywords: the others.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Any, keywords: Mapping[str, Any] | None) -> Self:
        """Return the call that a user means: ``inputs`` is the first argument, or a tuple of all positional ones."""
        return cls(inputs if isinstance(inputs, tuple) else (inputs,), keywords or {})

    def run(self, network: nn.Module) -> Any:
        """Call a network, without gradients; it may change its arguments in place, which are copies."""
        arguments, keywords = pytree.tree_map_only(Tensor, torch.clone, (self.arguments, dict(self.keywords)))
        with torch.no_grad():
            return network(*arguments, **keywords)

    def outputs(self, network: nn.Module) -> list[Tensor]:
        """Return all tensors that a network gives."""
        return [leaf for leaf in pytree.tree_leaves(self.run(network)) if isinstance(leaf, Tensor)]
