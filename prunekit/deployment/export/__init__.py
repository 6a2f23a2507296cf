"""Exports: a pruned network as one file, in the form that whoever runs it wants.

Each format is one module here with a ``FORMAT``; ``writing`` writes and checks them all. This module
has the names only, so that
 a command line that lists them does not wait for torch.
"""

MODULES = {
    "dense": "dense",
    "sparse": "sparse",
    "csr": "csr",
    "semi-structured": "semi_structured",
    "shrunk": "shrunk",
    "torch-export": "torch_export",
    "onnx": "onnx",
}
"""Name of a format -> its module in this package."""
