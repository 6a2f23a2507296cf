"""What a format of an export is: how to write it, how to read it back, and how far its outputs may be off.

This module must not know any format.
"""

from collections.abc import Callable
from pathlib import Path

import attrs
from torch import Tensor

from prunekit.pruned import Pruned
from prunekit.samples import Samples

Run = Callable[[Samples], tuple[Tensor, ...]]
"""Runs a network that was read back, and returns every tensor of what it gives."""


@attrs.frozen
class Format:
    """One format.

    Attributes:
        encode: returns the file of a pruned network.
        reopen: reads such a file the way its users do, and returns what runs it.
        tolerance: greatest difference of an output from that of the masked network; of its greatest output, where that
            is above 1.
        load: one line, how to load the file; ``{path}`` is its path.
        notes: returns what else a user should know of the file of this network, a line each.
    """

    encode: Callable[[Pruned], bytes]
    reopen: Callable[[Path, Pruned], Run]
    tolerance: float
    load: str
    notes: Callable[[Pruned], tuple[str, ...]] = lambda _: ()
