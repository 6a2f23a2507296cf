"""Bytes on disk: atomic writes, untrusted safetensors and ``torch.save`` files, and one header for all our files.

It must not know what the bytes mean.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "atomic": ["write_atomically"],
    },
)
