"""What a format of an export is: how to write it, how to read it back, and how far its outputs may be off.

This module must not know any format.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from torch import Tensor

from prunekit.deployment.pruned_network import PrunedNetwork
from prunekit.layers.samples import Samples

Run = Callable[[Samples], tuple[Tensor, ...]]
"""Runs a network that was read back, and returns every tensor of what it gives."""

SAME_WEIGHTS = 1e-6
"""Tolerance of the same weights in the same kernels, which may round otherwise with other threads."""

SINGLE_PRECISION = 1e-4
"""Tolerance of what sums thousands of terms in another order than torch's dense kernels, for outputs of order 1."""


def reopen_weights(load: Callable[[Path], Mapping[str, Tensor]]) -> Callable[[Path, PrunedNetwork], Run]:
    """Return what reads a state dict back, into a copy of the network."""

    def reopen(path: Path, pruned: PrunedNetwork) -> Run:
        network = copy.deepcopy(pruned.network)
        network.load_state_dict(load(path))
        return lambda samples: samples.through(network)

    return reopen


@attrs.frozen
class Encoded:
    """The bytes of a file, and what else a user should know of it, a line each."""

    data: bytes
    notes: tuple[str, ...] = ()


@attrs.frozen
class Format:
    """One format.

    Attributes:
        encode: returns the file of a pruned network.
        reopen: reads such a file the way its users do, and returns what runs it.
        tolerance: greatest difference of an output from that of the masked network; see
            ``prunekit.deployment.output_check``.
        load: one line, how to load the file; ``{path}`` is its path, quoted.
    """

    encode: Callable[[PrunedNetwork], Encoded]
    reopen: Callable[[Path, PrunedNetwork], Run]
    tolerance: float
    load: str
