"""Cost of a mask file: size, saving and loading of 25 M weights, against bools in safetensors.

Both are written whole or not at all, with fsync; both are read from the page cache into memory of their own.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from measuring import Row, interleaved

from prunekit import Masks, load_masks
from prunekit.files.atomic import write_atomically

DENSITY = 0.1
SHAPES = {f"layers.{number}.weight": (5000, 1000) for number in range(5)}
SIZE, SAVING, LOADING = 3.2, 0.45, 3.0  # MB, and ratios to safetensors
PEER = "safetensors, bool"


def rows() -> Iterator[Row]:
    """Measure the three."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) < DENSITY for name, shape in SHAPES.items()}
    masks = Masks(tensors)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.safetensors"), Path(folder, "theirs.safetensors")
        saving = interleaved(
            {
                "ours": lambda: masks.save(ours),
                "theirs": lambda: write_atomically(theirs, safetensors.torch.save(tensors)),
            },
            repeats=15,
        )
        loading = interleaved(
            {
                "ours": lambda: load_masks(ours),
                "theirs": lambda: [mask.clone() for mask in safetensors.torch.load_file(theirs).values()],
            },
            repeats=15,
        )
        sizes = ours.stat().st_size / 1e6, theirs.stat().st_size / 1e6
    yield Row("mask file, 25 M weights", sizes[0], PEER, sizes[1], SIZE, absolute=True, unit="MB")
    yield Row("saving it", saving["ours"], PEER, saving["theirs"], SAVING)
    yield Row("loading and unpacking it", loading["ours"], PEER, loading["theirs"], LOADING)
