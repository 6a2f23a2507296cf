"""One root seed, and from it a generator of its own for every use.

A use is named by what it is for and by indices, so that adding a layer or a plugin moves nobody
else's numbers, and a resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib
import json

import attrs
import torch


@attrs.frozen
class Seeds:
    """The root seed of a run.

    >>> Seeds(0).derive("data order", 3) == Seeds(0).derive("data order", 3)
    True
    """

    root: int

    def derive(self, *use: str | int) -> int:
        """Return the 63-bit seed of one use, equal on every machine."""
        key = json.dumps([self.root, *use]).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1

    def generator(self, *use: str | int) -> torch.Generator:
        """Return a fresh CPU generator seeded for one use."""
        return torch.Generator().manual_seed(self.derive(*use))
