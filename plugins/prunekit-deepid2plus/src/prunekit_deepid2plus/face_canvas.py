"""The canvas on which faces are painted, the turned head on it, and the shapes and colours of which they are made.

Distances to an outline are positive outside. A feature has a place on the head in three dimensions, so that turning
the head moves the nose more than the ears. Only operations that IEEE rounds in one way are used on pixels (sums,
products, quotients, roots, comparisons), so an image is the same bytes whichever images are drawn with it. This module
must not know what a face is made of.
"""

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]

DEPTH = {
    "eye": 0.5,
    "brow": 0.56,
    "nose_root": 0.58,
    "nose": 0.8,
    "mouth": 0.6,
    "cheek": 0.5,
    "ear": -0.05,
    "hair": 0.35,
}


class Canvas:
    """The images while they are painted.

    Attributes:
        x: Distance to the right of the point between the eyes' places, float32 `[images, rows, columns]`.
        y: The same downwards.
        colours: Red, green, blue in 0 to 1, float32 `[images, 3, rows, columns]`.
        painted: How much of each pixel is painted over the background, float32 `[images, rows, columns]`.
    """

    def __init__(self, parameters: Parameters, size: tuple[int, int]) -> None:
        """Lay the axes of each image: shifted, rolled and zoomed."""
        rows, columns = size
        self.pixel = max(2 / columns, 7 / 3 / rows)
        across = ((torch.arange(columns) + 0.5 - columns / 2) * self.pixel).view(1, 1, -1) - parameters["shift_x"]
        down = ((torch.arange(rows) + 0.5 - rows / 2) * self.pixel).view(1, -1, 1) - parameters["shift_y"]
        roll, zoom = parameters["roll"], parameters["zoom"]
        cosine = (1 - roll * roll).sqrt()
        self.x = (across * cosine + down * roll) / zoom
        self.y = (down * cosine - across * roll) / zoom
        self.colours = torch.zeros(len(self.x), 3, rows, columns)
        self.painted = torch.zeros_like(self.x)

    def cover(self, distance: Tensor, softness: float = 0.0) -> Tensor:
        """Return how much of each pixel lies inside an outline, 0 to 1, from the distance to it."""
        return (0.5 - distance / (self.pixel + softness)).clamp(0, 1)

    def paint(self, coverage: Tensor, colour: Tensor) -> None:
        """Paint a colour, `[images, 3, 1, 1]`, as far as it covers, `[images, rows, columns]`."""
        self.colours += (colour - self.colours).mul_(coverage.unsqueeze(1))
        torch.maximum(self.painted, coverage, out=self.painted)

    def darken(self, coverage: Tensor) -> None:
        """Take away a share of the light, `[images, rows, columns]`."""
        self.colours *= (1 - coverage).unsqueeze(1)


class Head:
    """Where things on the turned head are seen, with the point between the eyes kept in place."""

    def __init__(self, canvas: Canvas, parameters: Parameters) -> None:
        """Turn the head of each image."""
        self.canvas = canvas
        self.yaw = parameters["yaw"].clamp(-0.8, 0.8)
        self.pitch = parameters["pitch"].clamp(-0.6, 0.6)
        self.cos_yaw = (1 - self.yaw * self.yaw).sqrt()
        self.cos_pitch = (1 - self.pitch * self.pitch).sqrt()

    def around(self, x: Tensor | float, y: Tensor | float, depth: str | float) -> tuple[Tensor, Tensor]:
        """Return coordinates around a point of the head, narrower on the side that turns away."""
        z = (DEPTH[depth] if isinstance(depth, str) else depth) - DEPTH["eye"]
        narrowing = (self.cos_yaw - 0.5 * self.yaw * x).clamp(min=0.35)
        right = self.canvas.x - (x * self.cos_yaw + z * self.yaw)
        below = self.canvas.y - (y * self.cos_pitch + z * self.pitch)
        return right / narrowing, below / self.cos_pitch


def rgb(red: Tensor | float, green: Tensor | float, blue: Tensor | float) -> Tensor:
    """Return a colour, `[images, 3, 1, 1]`, from its parts, at least one of them `[images, 1, 1]`."""
    numbers = (torch.as_tensor(part, dtype=torch.float32) for part in (red, green, blue))
    parts = torch.broadcast_tensors(*numbers)  # type: ignore[no-untyped-call] # torch's stubs
    return torch.stack([part.reshape(-1, 1, 1) for part in parts], 1).clamp(0.02, 1)


def ellipse(x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    """Return the (near the outline) distance to an ellipse around the origin."""
    radius = ((x / half_width).square() + (y / half_height).square()).sqrt()
    return (radius - 1) * torch.minimum(torch.as_tensor(half_width), torch.as_tensor(half_height))


def wave(position: Tensor) -> Tensor:
    """Return a triangle wave of period 1 between -1 and 1."""
    return 4 * (position - (position + 0.5).floor()).abs() - 1


def photograph(canvas: Canvas, p: Parameters, noise: Tensor) -> Tensor:
    """Expose, blur and quantise: the bytes of the images."""
    colours = canvas.colours * p["exposure"].clamp(0.35, 1.8).unsqueeze(1)
    colours = colours * _colour_of_light(p)
    colours = 0.45 + (colours - 0.45) * p["contrast"].clamp(0.4, 1.8).unsqueeze(1)
    weight = p["blur"].clamp(0, 1).unsqueeze(1)
    widest = max(1, round(1 / 24 / canvas.pixel))  # one pixel of a 56x48 image
    for dimension, step in product((2, 3), range(1, widest + 1)):
        colours = colours + weight * (_neighbours(colours, dimension, step) - colours)
    colours = colours + p["noise"].clamp(min=0).unsqueeze(1) * (2 * noise - 1)
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def _colour_of_light(p: Parameters) -> Tensor:
    """Return the colour of the light, `[images, 3, 1, 1]`."""
    return torch.stack([1 + p["cast_red"], torch.ones_like(p["cast_red"]), 1 + p["cast_blue"]], 1)


def _neighbours(colours: Tensor, dimension: int, step: int) -> Tensor:
    """Return the mean of a pixel, counted twice, and its two neighbours along a dimension; the border repeats."""
    length = colours.shape[dimension]
    before = colours.index_select(dimension, (torch.arange(length) - step).clamp(min=0))
    after = colours.index_select(dimension, (torch.arange(length) + step).clamp(max=length - 1))
    return 0.25 * (before + after) + 0.5 * colours
