"""One mask update from evidence to mask, and what the requested structure means.

It must not know stages or run folders.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "standalone": ["select"],
        "update": ["choose_masks"],
    },
)
