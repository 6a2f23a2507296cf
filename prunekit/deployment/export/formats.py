"""Shared by several formats: tolerances, and reading a state dict into a copy of the network.

This module must not know any format.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from prunekit.contracts.export_format import PrunedNetwork, Run

SAME_WEIGHTS = 1e-6
"""Tolerance for equal weights in the same kernels, which may round differently with another number of threads."""

SINGLE_PRECISION = 1e-4
"""Tolerance for kernels that sum thousands of terms in another order than dense kernels, at outputs of order 1."""


def reopen_weights(load: Callable[[Path], Mapping[str, Tensor]]) -> Callable[[Path, PrunedNetwork], Run]:
    """Return a function ``reopen`` that loads a state dict into a copy of the network."""
    return lambda path, pruned: pruned.runner(load(path))
