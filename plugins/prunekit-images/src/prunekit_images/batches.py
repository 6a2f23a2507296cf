"""Batches of images: shuffled and shifted for training, in order otherwise; normalised in either case.

Batch i is a pure function of (epoch, seeds, i), so a resumed run draws what the uninterrupted one would have
drawn. All work on a batch is done for the whole batch at once. This module must not know networks.
"""

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from prunekit.contracts.seeds import Seeds
from prunekit.distributed.batch_shares import BatchShare, rank_slice
from prunekit_images.data import Images

Batch = tuple[Tensor, Tensor]

_AT_ONCE = 512  # images that are summed at a time; more do not fit a cache


@attrs.frozen(eq=False)
class Scale:
    """What brings pixels to mean 0 and standard deviation 1, colour by colour.

    Attributes:
        mean: ``[colours, 1, 1]``.
        deviation: the same; 1 where all pixels are alike.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> "Scale":
        """Measure images ``[images, colours, rows, columns]``."""
        count = pixels[:, 0].numel()
        parts = torch.split(pixels, _AT_ONCE)
        mean = torch.stack([part.sum((0, 2, 3), dtype=torch.float64) for part in parts]).sum(0) / count
        mean = mean[:, None, None]
        squares = torch.stack([(part - mean).square().sum((0, 2, 3)) for part in parts]).sum(0)
        deviation = (squares / count).sqrt()[:, None, None]
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())

    def apply(self, pixels: Tensor) -> Tensor:
        """Return float32 images."""
        return pixels.float().sub_(self.mean).div_(self.deviation)


@attrs.frozen(eq=False)
class TrainingBatches(Sequence[Batch]):
    """One epoch: (float32 images, labels), every image at most once.

    What fills no whole batch is left to other epochs, unless it is all there is.

    Attributes:
        images: what is trained on.
        scale: normalises them.
        size: images in a batch.
        shift: greatest shift up, down, left and right, in whole pixels; what comes in is black.
        epoch: which epoch this is.
        seeds: the seeds of the run.
    """

    images: Images
    scale: Scale
    size: int
    shift: int
    epoch: int
    seeds: Seeds
    _order: Tensor = attrs.field(init=False)

    @_order.default
    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self.images), generator=self.seeds.generator("image order", self.epoch))

    def __len__(self) -> int:
        return max(1, len(self.images) // self.size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.share(index, 0, 1).batch

    def share(self, index: int, rank: int, ranks: int) -> BatchShare:
        """Return a rank's share of batch ``index``, without loading the other shares."""
        whole = self._order[index * self.size : (index + 1) * self.size]
        mine = rank_slice(len(whole), rank, ranks)
        chosen = whole[mine]
        pixels = self.images.pixels[chosen]
        if self.shift:
            # Drawn for the whole batch: a sample moves alike, whoever has it.
            generator = self.seeds.generator("image shift", self.epoch, index)
            first = torch.randint(0, 2 * self.shift + 1, (2, len(whole), 1), generator=generator)
            pixels = shifted(pixels, self.shift, first[:, mine])
        return BatchShare((self.scale.apply(pixels), self.images.labels[chosen]), len(chosen) / len(whole))


@attrs.frozen(eq=False)
class PlainBatches(Sequence[Batch]):
    """Images in order: (float32 images, labels).

    Attributes:
        images: what is shown.
        scale: normalises them.
        size: images in a batch; the last may have fewer.
    """

    images: Images
    scale: Scale
    size: int

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(index * self.size, (index + 1) * self.size)
        return self.scale.apply(self.images.pixels[part]), self.images.labels[part]


def shifted(pixels: Tensor, most: int, first: Tensor) -> Tensor:
    """Move each image by a whole number of pixels, -most to most, down and to the right; what comes in is 0.

    Args:
        pixels: ``[images, colours, rows, columns]``.
        most: at least 1.
        first: int64 ``[2, images, 1]``, 0 to twice ``most``: the first row and column of each image in the padded one.
    """
    count, _, rows, columns = pixels.shape
    padded = torch.nn.functional.pad(pixels, (most,) * 4)
    down, right = first[0] + torch.arange(rows), first[1] + torch.arange(columns)
    images = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2).contiguous()
