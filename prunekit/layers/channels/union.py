"""Channels of a network as numbers: which of them are one channel, and which must be kept.

A channel is one unit of a layer and everything it flows into: activations, the features of a flattened map, and sums
with other channels, which become one channel with it. This module must not know networks.
"""

import torch
from torch import Tensor


class ChannelUnion:
    """A disjoint-set forest over channel numbers; the root of a set is its smallest number."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """Add channels and return their numbers: int64 ``[count]``."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return torch.arange(first, first + count)

    def roots(self, channels: Tensor) -> Tensor:
        """Return the root of each channel, which joined channels share: int64 of the shape of ``channels``."""
        numbers, places = torch.unique(channels, return_inverse=True)
        return torch.tensor([self._root(number) for number in numbers.tolist()], dtype=torch.int64)[places]

    def join(self, first: Tensor, second: Tensor) -> None:
        """Join each channel of one tensor with the channel at the same index of another."""
        for pair in torch.unique(torch.stack([first, second], 1), dim=0).tolist():
            root, other = sorted(map(self._root, pair))
            if root != other:
                self._parents[other] = root

    def keep(self, channels: Tensor, reason: str) -> None:
        """Mark channels to be kept, for a reason; only the first reason of a channel is stored."""
        for number in torch.unique(channels).tolist():
            self._reasons.setdefault(number, reason)

    def kept(self) -> dict[int, str]:
        """Return the channels that must be kept: root -> reason."""
        reasons: dict[int, str] = {}
        for number, reason in sorted(self._reasons.items()):
            reasons.setdefault(self._root(number), reason)
        return reasons

    def __len__(self) -> int:
        return len(self._parents)

    def _root(self, number: int) -> int:
        path = []
        while self._parents[number] != number:
            path.append(number)
            number = self._parents[number]
        for passed in path:
            self._parents[passed] = number
        return number
