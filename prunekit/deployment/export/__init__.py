"""The built-in export formats, one module each with a ``FORMAT``; ``writing`` writes and checks files of any format.

This package is the plugin ``export``. It imports formats only when the hook is called, so that importing it does not
wait for torch. It must not know how networks are pruned.
"""

from importlib import import_module
from typing import Any

from prunekit.contracts.markers import hookimpl

MODULES = {
    "dense": "dense",
    "sparse": "sparse",
    "csr": "csr",
    "semi-structured": "semi_structured",
    "shrunk": "shrunk",
    "torch-export": "torch_export",
    "onnx": "onnx",
}
"""Name of a built-in format -> its module in this package."""


@hookimpl
def prunekit_export_formats() -> list[Any]:
    """Return the built-in formats."""
    return [import_module(f"{__name__}.{module}").FORMAT for module in MODULES.values()]
