"""Random numbers from one root seed: every use gets a generator of its own.

A use is named by its purpose and by indices. Adding a layer or a plugin therefore changes no other use's numbers, and a
resumed run draws the numbers that the uninterrupted run would have drawn.
"""

import hashlib
import json

import attrs
import torch


@attrs.frozen
class Seeds:
    """The seeds of a run, each derived from the root seed and the name of its use.

    >>> seeds = Seeds(0)
    >>> order = torch.randperm(10, generator=seeds.generator("data order", 3))
    >>> seeds.derive("data order", 3) == Seeds(0).derive("data order", 3)
    True

    Attributes:
        root: the run's ``seed`` setting, or a seed derived from it: a whole number of at least 0.
    """

    root: int

    def derive(self, *use: str | int) -> int:
        """Return the seed of one use: a 63-bit number, the same on every machine.

        Args:
            use: the purpose, then indices: ``"data order", epoch``. Different names give independent seeds.
        """
        key = json.dumps([self.root, *use]).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1

    def generator(self, *use: str | int) -> torch.Generator:
        """Return a new CPU generator, seeded with ``derive(*use)``."""
        return torch.Generator().manual_seed(self.derive(*use))
