"""Patches of a face, a network for each, their features joined (Sun, Wang, Tang, CVPR 2015).

A patch is a part of the aligned face, at some scale, in colour or grey. This module must not know data, losses or
training.
"""

import re
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor, nn

from prunekit_deepid2plus.network import Network, NetworkSettings, activation_names

REGIONS = {
    "whole": (0.0, 1.0, 0.0, 1.0),
    "upper": (0.0, 0.6, 0.0, 1.0),
    "lower": (0.4, 1.0, 0.0, 1.0),
    "left": (0.0, 1.0, 0.0, 0.6),
    "right": (0.0, 1.0, 0.4, 1.0),
    "eyes": (0.25, 0.65, 0.1, 0.9),
    "left-eye": (0.25, 0.65, 0.1, 0.6),
    "right-eye": (0.25, 0.65, 0.4, 0.9),
    "nose": (0.4, 0.8, 0.25, 0.75),
    "mouth": (0.65, 1.0, 0.2, 0.8),
}
"""First and last row, first and last column, as fractions of the usual 112x96 crop aligned by five landmarks, which
has the eyes at 46 % and the mouth at 82 % of its rows; left and right are those of the image."""

WHOLE_SCALE = 100
"""In percent: a region as it stands in the table."""

_FORM = re.compile(r"(?P<region>[a-z-]+)(@(?P<scale>[0-9]{2,3}))?(?P<grey>:grey)?")
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as Pillow does it


@attrs.frozen
class Patch:
    """A part of a face.

    Attributes:
        region: a name of ``REGIONS``.
        scale: size in percent of the region's, around its centre; what lies outside the face is cut off.
        grey: whether it has brightness alone.
    """

    region: str
    scale: int = WHOLE_SCALE
    grey: bool = False

    @property
    def name(self) -> str:
        """What layers are called by; module names have no dots."""
        scale = "" if self.scale == WHOLE_SCALE else f"-{self.scale}"
        return self.region + scale + ("-grey" if self.grey else "")

    def box(self, rows: int, columns: int) -> tuple[slice, slice]:
        """Return the rows and columns it has of a face of that size."""
        top, bottom, left, right = REGIONS[self.region]
        return _scaled(top, bottom, self.scale, rows), _scaled(left, right, self.scale, columns)

    def cut(self, faces: Tensor, size: tuple[int, int]) -> Tensor:
        """Cut the patch out of float faces ``[samples, 3, rows, columns]``, resized: ``[samples, 3 or 1, *size]``."""
        down, across = self.box(*faces.shape[2:])
        part = faces[:, :, down, across]
        if self.grey:
            part = (part * part.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
        if part.shape[2:] == size:
            return part
        return nn.functional.interpolate(part, size, mode="bilinear", antialias=True)


def _scaled(first: float, last: float, scale: int, length: int) -> slice:
    centre, half = (first + last) / 2, (last - first) / 2 * scale / 100
    return slice(max(0, round((centre - half) * length)), min(length, round((centre + half) * length)))


def is_whole_face(patches: Sequence[Patch]) -> bool:
    """Return True if the only patch is the whole face in colour, at its usual scale."""
    return tuple(patches) == (Patch("whole"),)


def parse_patches(text: str) -> tuple[Patch, ...]:
    """Read "REGION[@PERCENT][:grey] ...".

    >>> parse_patches("whole eyes@120:grey")
    (Patch(region='whole', scale=100, grey=False), Patch(region='eyes', scale=120, grey=True))

    Raises:
        ValueError: nothing, an unknown region, a scale outside 20 to 200, a patch named twice.
    """
    patches = []
    for entry in text.split():
        match = _FORM.fullmatch(entry)
        if match is None or match["region"] not in REGIONS:
            raise ValueError(
                f"patches names {entry!r}, expected REGION, REGION@PERCENT or REGION:grey with a region of "
                f"{', '.join(REGIONS)}"
            )
        patch = Patch(match["region"], int(match["scale"] or WHOLE_SCALE), match["grey"] is not None)
        if not 20 <= patch.scale <= 200:  # noqa: PLR2004 - with less little is left, with more a mouth is the whole face
            raise ValueError(f"patches names {entry!r}, expected a scale of 20 to 200 percent")
        if patch in patches:
            raise ValueError(f"patches names {entry!r} twice")
        patches.append(patch)
    if not patches:
        raise ValueError("patches names none; write 'whole' for the whole face")
    return tuple(patches)


class PatchedNetwork(nn.Module):
    """Faces ``[samples, 3, rows, columns]`` to the joined features of their patches ``[samples, patches * feature]``.

    The networks, ``patches.NAME``, share nothing.
    """

    def __init__(self, settings: NetworkSettings, patches: Sequence[Patch]) -> None:
        super().__init__()
        self.settings = settings
        self.cuts = {patch.name: patch for patch in patches}
        self.patches = nn.ModuleDict(
            {
                name: Network(attrs.evolve(settings, colours=1 if patch.grey else settings.colours))
                for name, patch in self.cuts.items()
            }
        )

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of each stage of each network, under "NAME/STAGE"."""
        outputs: dict[str, Tensor] = {}
        for name, network in self.patches.items():
            assert isinstance(network, Network)
            values = network.stages(self.cuts[name].cut(images, self.settings.input_size))
            outputs |= {f"{name}/{stage}": value for stage, value in values.items()}
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the joined features."""
        stages = self.stages(images)
        return torch.cat([stages[f"{name}/f"] for name in self.patches], 1)


def patch_activation_names(patches: Sequence[Patch]) -> dict[str, str]:
    """Return layer name -> the module whose output is the layer's activation, for a ``PatchedNetwork``."""
    return {
        f"patches.{patch.name}.{layer}": f"patches.{patch.name}.{module}"
        for patch in patches
        for layer, module in activation_names().items()
    }
