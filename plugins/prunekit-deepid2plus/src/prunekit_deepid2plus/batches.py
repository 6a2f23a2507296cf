"""Batches of faces: the same number of images of each of some people, augmented.

Batch i is a pure function of (epoch, seeds, i), so a resumed run draws what the uninterrupted one would have
drawn. All work on a batch is done for the whole batch at once. This module must not know networks.
"""

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.seeds import Seeds
from prunekit.distributed.batch_shares import BatchShare, rank_slice

_ALL = slice(None)

LEAST_BATCHES = 12
"""Budgets are in epochs; a data set of a few hundred images is to get enough steps, too."""


def to_float(images: Tensor) -> Tensor:
    """Bring uint8 images to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


@attrs.frozen
class Augmentation:
    """How much training images vary.

    Attributes:
        shift: greatest shift along either side, in pixels.
        turn: greatest angle of a turn about the middle, in degrees.
        zoom: greatest logarithm of the change of size.
        contrast: greatest relative change of the distance from the image's mean.
        brightness: greatest change of all values, where black to white is 2.
        erased: share of the images in which a rectangle becomes grey, its sides 15 to 50 % of the image's.
    """

    shift: float = 3.0
    turn: float = 8.0
    zoom: float = 0.1
    contrast: float = 0.3
    brightness: float = 0.3
    erased: float = 0.5

    def apply(self, images: Tensor, generator: torch.Generator, whole: int | None = None, mine: slice = _ALL) -> Tensor:
        """Mirror half of uint8 images ``[images, 3, rows, columns]``, move, relight, erase; float32.

        Args:
            images: some of a batch's.
            generator: draws for the whole batch, so that an image varies alike whatever others are made with it.
            whole: images of the whole batch; ``None``: these are all.
            mine: which of them these are.
        """
        samples = len(images) if whole is None else whole

        def uniform(amount: float) -> Tensor:
            return (torch.rand(samples, generator=generator) * 2 - 1)[mine] * amount

        angle, zoom = uniform(math.radians(self.turn)), uniform(self.zoom).exp()
        down, right = uniform(self.shift), uniform(self.shift)
        mirror = torch.where(torch.rand(samples, generator=generator)[mine] < 0.5, -1.0, 1.0)  # noqa: PLR2004 - a fair coin
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        # Of every pixel of the result, from the middle: where in the image it comes from.
        maps = torch.stack([cosine * mirror, -sine, right, sine * mirror, cosine, down], 1).view(-1, 2, 3)
        values = resampled(to_float(images), maps)
        mean = values.mean((1, 2, 3), keepdim=True)
        contrast, brightness = (uniform(amount).view(-1, 1, 1, 1) for amount in (self.contrast, self.brightness))
        values = (values - mean) * (1 + contrast) + mean + brightness
        chosen = torch.rand(samples, generator=generator)[mine] < self.erased
        rows, columns = (_stretch(samples, size, generator)[mine] for size in values.shape[2:])
        return values.masked_fill_((chosen[:, None, None] & rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _stretch(samples: int, size: int, generator: torch.Generator) -> Tensor:
    """Choose for each sample a run of 15 to 50 % of its places, cut at the ends: bool ``[samples, size]``."""
    length, middle = torch.rand(2, samples, 1, generator=generator)
    distance = (torch.arange(size) - middle * size).abs()
    return torch.lt(distance, (0.15 + 0.35 * length) * size / 2)


def resampled(images: Tensor, maps: Tensor) -> Tensor:
    """Return images whose pixels come from elsewhere, bilinearly between four; beyond an edge, the edge repeats.

    Args:
        images: float ``[samples, channels, rows, columns]``.
        maps: ``[samples, 2, 3]``; (x, y, 1) of a pixel of the result -> (x, y) in the image, both in pixels from the
            middle, to the right and down.
    """
    height, width = images.shape[2:]
    # torch counts from -1 to 1 along each side.
    half = maps.new_tensor([width / 2, height / 2])
    relative = torch.cat([maps[:, :, :2] * half / half[:, None], maps[:, :, 2:] / half[:, None]], 2)
    grid = nn.functional.affine_grid(relative, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@attrs.frozen(eq=False)
class BalancedBatches(Sequence[tuple[Tensor, Tensor]]):
    """One epoch of training batches: (float32 images, person numbers), ``each`` images of each of ``people`` people.

    People are drawn without replacement, in proportion to the square root of the images they have; so are the
    images of a person, until there are no more and they come again. An epoch has as many batches as it takes to
    show as many images as there are, but no fewer than ``LEAST_BATCHES``.

    Attributes:
        images: uint8 ``[images, 3, rows, columns]``.
        table: image numbers ``[people, most images of one]``, filled from the left.
        counts: images of each person.
        people: people in a batch.
        each: images of one person in a batch.
        augmentation: how images vary.
        epoch: which epoch this is.
        seeds: the seeds of the run.
    """

    images: Tensor
    table: Tensor
    counts: Tensor
    people: int
    each: int
    augmentation: Augmentation
    epoch: int
    seeds: Seeds

    def __len__(self) -> int:
        return max(LEAST_BATCHES, round(len(self.images) / (self.people * self.each)))

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.share(index, 0, 1).batch

    def share(self, index: int, rank: int, ranks: int) -> BatchShare:
        """Return a rank's share of batch ``index``, without loading the other shares."""
        generator = self.seeds.generator("face batch", self.epoch, index)
        chosen = torch.multinomial(self.counts.sqrt(), self.people, generator=generator)
        counts = self.counts[chosen, None]
        keys = torch.rand(self.people, self.table.shape[1], generator=generator)
        # A random order of each person's images: what is beyond the last image comes after all others.
        order = keys.masked_fill_(torch.arange(self.table.shape[1]) >= counts, 2).argsort(1)
        slots = torch.arange(self.each) % counts
        taken = self.table[chosen].gather(1, order.gather(1, slots)).flatten()
        people, samples = chosen.repeat_interleave(self.each), len(taken)
        mine = rank_slice(samples, rank, ranks)
        images = self.augmentation.apply(self.images[taken[mine]], generator, samples, mine)
        return BatchShare((images, people[mine]), len(images) / samples)


@attrs.frozen(eq=False)
class PlainBatches(Sequence[tuple[Tensor, Tensor]]):
    """Images as they are, in order: (float32 images, person numbers).

    Attributes:
        images: uint8 ``[images, 3, rows, columns]``.
        people: person numbers ``[images]``.
        size: images in a batch; the last may have fewer.
    """

    images: Tensor
    people: Tensor
    size: int

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(index * self.size, (index + 1) * self.size)
        return to_float(self.images[part]), self.people[part]


def table_of(people: Tensor) -> tuple[Tensor, Tensor]:
    """Return (image numbers of each person ``[people, most]``, images of each person) from person numbers 0, 1, ..."""
    counts = people.bincount()
    order = people.argsort(stable=True)
    first = counts.cumsum(0) - counts
    table = torch.zeros(len(counts), int(counts.max()), dtype=torch.int64)
    table[people[order], torch.arange(len(order)) - first[people[order]]] = order
    return table, counts
