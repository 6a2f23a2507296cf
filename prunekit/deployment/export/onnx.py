"""Format ``onnx``: one file with the weights for onnxruntime and other runtimes, at any batch size."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run
from prunekit.deployment.export.formats import SINGLE_PRECISION
from prunekit.deployment.export.torch_export import quiet, reason, traced
from prunekit.distributed.torch_internals import tree_leaves
from prunekit.errors import ConfigError, ExportError
from prunekit.layers.samples import Samples

_MOST_BYTES = 2**31 - 2**20
"""Largest total size of the weights: protobuf allows 2 GiB, and the graph needs some of it."""


def _encode(pruned: PrunedNetwork) -> Encoded:
    _needed("onnxscript")
    size = sum(tensor.numel() * tensor.element_size() for tensor in pruned.network.state_dict().values())
    if size > _MOST_BYTES:
        raise ExportError(
            f"{pruned.name} has {size:,} bytes of weights, but an ONNX file has at most 2 GiB; use torch-export"
        )
    if any(tensor.dtype == torch.bfloat16 for tensor in pruned.network.state_dict().values()):
        raise ExportError(
            f"{pruned.name} has bfloat16 weights, which onnxruntime does not run on a CPU; convert it to float32"
        )
    names = _names(pruned)
    program = traced(pruned)
    try:
        with quiet():
            made = torch.onnx.export(program, dynamo=True, output_names=names, verbose=False)
    except Exception as error:  # torch raises errors of many kinds for operators that ONNX lacks
        raise ExportError(
            f"torch.onnx.export cannot write {type(pruned.network).__name__} ({pruned.name}): "
            f"{reason(error)}; change that operator in the network, or export to torch-export"
        ) from error
    assert made is not None
    for node in made.model.graph:  # file names and source lines of this machine
        node.metadata_props.clear()
    return Encoded(made.model_proto.SerializeToString(deterministic=True))


def _names(pruned: PrunedNetwork) -> list[str]:
    count = len(pruned.outputs(pruned.samples.take(1)))
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]


def _reopen(path: Path, _: PrunedNetwork) -> Run:
    onnx, runtime = _needed("onnx"), _needed("onnxruntime")
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many error types of its own
        raise ExportError(f"onnxruntime cannot run the file ({reason(error)}); export to torch-export") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(samples: Samples) -> tuple[Tensor, ...]:
        leaves = tree_leaves((samples.arguments, dict(samples.keywords)))
        tensors = [leaf.numpy() for leaf in leaves if isinstance(leaf, Tensor)]
        return tuple(map(torch.from_numpy, session.run(None, dict(zip(names, tensors, strict=True)))))

    return run


def _needed(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"format onnx needs the package {package}, which cannot be imported ({error}); "
            "install it with pip install 'prunekit[onnx]'"
        ) from error


FORMAT = ExportFormat(
    "onnx",
    "One file for onnxruntime and other runtimes.",
    _encode,
    _reopen,
    SINGLE_PRECISION,
    load="session = onnxruntime.InferenceSession({path})",
)
