"""prunekit: prune neural networks with criteria and schedules that are plugins.

``__init__.pyi`` lists the public names. Each is imported on first use: ``import prunekit`` does not import torch.
"""

from typing import Any

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("prunekit")
    return _public(name)
