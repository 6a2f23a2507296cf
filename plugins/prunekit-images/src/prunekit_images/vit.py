"""A small vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021); the mean over patches.

Query, key, value and output are linear layers of their own, so that criteria can observe each. This module must not
know data or training.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOST_PATCHES = 64
_HEAD_WIDTH = 16
_POSITION_DEVIATION = 0.02  # as in the paper's code


def patch_side(rows: int, columns: int) -> int | None:
    """Return the smallest side, at least 2, of at most 64 square patches that tile an image; ``None``: no side does."""
    sides = (side for side in range(2, min(rows, columns) + 1) if rows % side == 0 == columns % side)
    return next((side for side in sides if rows * columns <= _MOST_PATCHES * side**2), None)


class Attention(nn.Module):
    """Every patch takes from every other: ``query``, ``key``, ``value`` in heads of 16 values or more, ``out``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % heads == 0)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[samples, patches, width]``."""
        query, key, value = (
            part(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        outputs: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return outputs


class TransformerBlock(nn.Module):
    """Attention, then two linear layers, ``fc1`` and ``fc2``; each normalised before and added after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[samples, patches, width]``."""
        tokens = tokens + self.attention(self.norm1(tokens))
        outputs: Tensor = tokens + self.fc2(self.gelu(self.fc1(self.norm2(tokens))))
        return outputs


class VisionTransformer(nn.Module):
    """Images ``[samples, *shape]`` to scores ``[samples, classes]``.

    Its prunable layers are ``patches``, ``block1.attention.query``, ``key``, ``value``, ``out``, ``block1.fc1``,
    ``block1.fc2``, ... and ``head``.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, blocks: int, patch: int) -> None:
        super().__init__()
        colours, rows, columns = shape
        self.patches = nn.Conv2d(colours, width, patch, patch)
        self.positions = nn.Parameter(torch.empty(1, rows * columns // patch**2, width))
        nn.init.normal_(self.positions, std=_POSITION_DEVIATION)
        self.blocks = [f"block{number}" for number in range(1, blocks + 1)]
        for name in self.blocks:
            self.add_module(name, TransformerBlock(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    @property
    def activation_of(self) -> dict[str, str]:
        """Layer -> the module whose output is its activation."""
        return {f"{name}.fc1": f"{name}.gelu" for name in self.blocks}

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for name in self.blocks:
            tokens = self.get_submodule(name)(tokens)
        scores: Tensor = self.head(self.norm(tokens).mean(1))
        return scores
