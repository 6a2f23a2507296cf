"""A third-party export format: NumPy's .npz, with one array per tensor of the state dict."""

import io
from pathlib import Path

import numpy as np
import torch

from prunekit import hookimpl
from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run


def encode(pruned: PrunedNetwork) -> Encoded:
    """Return the bytes of the file."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in pruned.network.state_dict().items()})
    return Encoded(file.getvalue())


def reopen(path: Path, pruned: PrunedNetwork) -> Run:
    """Read the file back and return a function that runs it."""
    arrays = np.load(path)
    return pruned.runner({name: torch.from_numpy(arrays[name]) for name in arrays.files})


@hookimpl
def prunekit_export_formats() -> list[ExportFormat]:
    return [ExportFormat("npz", "Arrays by name, for NumPy.", encode, reopen, 1e-6, "numpy.load({path})")]
