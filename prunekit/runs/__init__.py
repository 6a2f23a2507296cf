"""From a recipe to results: configuration, preparation, engine and stages.

It must not know the later use of the network, or click.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["RunConfig"],
        "engine": ["run"],
        "folder": ["RunFolder"],
        "preparation": ["PreparedRun", "prepare"],
    },
)
