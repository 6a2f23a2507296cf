"""Format ``torch-export``: a program of ``torch.export``, which runs without the code of the network at any batch size.

torch unpickles everything in such a file that is not a plain tensor. No such object is written: weights are raw bytes,
and the example inputs, which may be private data, are removed.
"""

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run
from prunekit.deployment.export.formats import SINGLE_PRECISION
from prunekit.distributed.torch_internals import tree_map
from prunekit.errors import ExportError
from prunekit.layers.samples import Samples

_TRACED = 2  # samples: with one, torch treats the batch as fixed


def traced(pruned: PrunedNetwork) -> torch.export.ExportedProgram:
    """Trace the network to a program that takes any number of samples.

    Raises:
        ExportError: the network cannot be traced, or only for a fixed batch; gives the reason of torch.
    """
    samples = pruned.samples.take(_TRACED)
    try:
        with quiet():
            program = torch.export.export(
                pruned.network, samples.arguments, dict(samples.keywords), dynamic_shapes=_shapes(pruned, samples)
            )
    except Exception as error:  # torch raises errors of any kind for code that it cannot trace
        raise ExportError(
            f"torch.export cannot trace {type(pruned.network).__name__} ({pruned.name}) with a varying batch: "
            f"{reason(error)}; change that code in the network, or export weights only with --to dense"
        ) from error
    program.example_inputs = None
    for node in program.graph.nodes:  # file names and source lines of this machine
        node.meta.pop("stack_trace", None)
    return program


def _shapes(pruned: PrunedNetwork, samples: Samples) -> dict[str, Any]:
    """Return the dynamic shapes by argument: the first dimension of each batched tensor is the batch."""
    bound = inspect.signature(pruned.network.forward).bind(*samples.arguments, **samples.keywords)
    batch = torch.export.Dim("batch")

    def shape(value: Any) -> Any:
        return {0: batch} if samples.is_batched(value) else None

    shapes: dict[str, Any] = tree_map(shape, dict(bound.arguments))
    return shapes


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages that torch prints for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reason(error: Exception) -> str:
    """Return an error of another library as part of one line, at most 400 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def _encode(pruned: PrunedNetwork) -> Encoded:
    buffer = io.BytesIO()
    torch.export.save(traced(pruned), buffer)
    return Encoded(buffer.getvalue())


def _reopen(path: Path, pruned: PrunedNetwork) -> Run:
    try:
        with path.open("rb") as file, quiet():
            module = torch.export.load(file).module()
    except Exception as error:  # torch cannot read everything it writes, such as text outputs, and gives no reason
        raise ExportError(
            f"torch.export.load cannot read the program that torch.export.save wrote for {pruned.name}; "
            "return only tensors from the network, or export weights only with --to dense"
        ) from error
    return lambda samples: samples.through(module)


FORMAT = ExportFormat(
    "torch-export",
    "A torch.export program, which runs without the code of the network.",
    _encode,
    _reopen,
    SINGLE_PRECISION,
    load="program = torch.export.load({path}).module()",
)
