"""Channels of a network, as numbers: which stand or fall together, and which have to stay.

A channel is one unit of a layer, wherever it flows: through activations, into several features where a map is
flattened, into a sum with other channels, which are then one channel with it. This module must not know networks.
"""

import torch
from torch import Tensor


class ChannelUnion:
    """A disjoint-set forest over channel numbers; of every set the smallest number is the root."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """Return the numbers of so many new channels: int64 ``[count]``."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return torch.arange(first, first + count)

    def roots(self, channels: Tensor) -> Tensor:
        """Return the root of each channel: the same number for those that are one; the shape of ``channels``."""
        numbers, places = torch.unique(channels, return_inverse=True)
        return torch.tensor([self._root(number) for number in numbers.tolist()], dtype=torch.int64)[places]

    def join(self, first: Tensor, second: Tensor) -> None:
        """Make channels of the same place in two tensors one."""
        for pair in torch.unique(torch.stack([first, second], 1), dim=0).tolist():
            root, other = sorted(map(self._root, pair))
            if root != other:
                self._parents[other] = root

    def keep(self, channels: Tensor, reason: str) -> None:
        """Have channels stay, for a reason; the first reason counts."""
        for number in torch.unique(channels).tolist():
            self._reasons.setdefault(number, reason)

    def kept(self) -> dict[int, str]:
        """Return the root of each channel that has to stay -> the reason."""
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
