"""Plugins: hookspecs, manager, registry, construction from options, and the list of built-ins.

It must not know runs or the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "manager": ["make_manager"],
        "registry": ["Registry", "collect"],
    },
)
