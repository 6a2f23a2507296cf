"""Format ``torch-export``: the program of ``torch.export``, which runs without the network's code, at any batch size.

torch reads its own files back with pickle for what is no plain tensor; nothing of that kind is written: weights are
raw bytes, and the example inputs, which may be anyone's data, are left out.
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

_TRACED = 2  # samples: with one, torch takes the batch for fixed


def traced(pruned: PrunedNetwork) -> torch.export.ExportedProgram:
    """Return the network as a program whose inputs may have any number of samples.

    Raises:
        ExportError: it cannot be traced, or its batch cannot vary; says torch's reason.
    """
    samples = pruned.samples.take(_TRACED)
    try:
        with quiet():
            program = torch.export.export(
                pruned.network, samples.arguments, dict(samples.keywords), dynamic_shapes=_shapes(pruned, samples)
            )
    except Exception as error:  # torch meets code that it cannot trace with errors of any kind
        raise ExportError(
            f"torch.export cannot trace {type(pruned.network).__name__} ({pruned.name}) with a varying batch: "
            f"{reason(error)}; change what it names in the network, or export weights only (dense)"
        ) from error
    program.example_inputs = None
    for node in program.graph.nodes:  # names of files and lines of code of this machine
        node.meta.pop("stack_trace", None)
    return program


def _shapes(pruned: PrunedNetwork, samples: Samples) -> dict[str, Any]:
    """Say, argument by argument, that the first dimension of what has an entry for each sample is the batch."""
    bound = inspect.signature(pruned.network.forward).bind(*samples.arguments, **samples.keywords)
    batch = torch.export.Dim("batch")

    def shape(value: Any) -> Any:
        return {0: batch} if samples.is_batched(value) else None

    shapes: dict[str, Any] = tree_map(shape, dict(bound.arguments))
    return shapes


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's notes to its developers away from the user."""
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
    """Return what some library says in an error, of any length and on many lines, as a part of one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def _encode(pruned: PrunedNetwork) -> Encoded:
    buffer = io.BytesIO()
    torch.export.save(traced(pruned), buffer)
    return Encoded(buffer.getvalue())


def _reopen(path: Path, pruned: PrunedNetwork) -> Run:
    try:
        with path.open("rb") as file, quiet():
            module = torch.export.load(file).module()
    except Exception as error:  # torch does not read all that it writes, text among the outputs for one; nor says why
        raise ExportError(
            f"torch.export.load cannot read what torch.export.save wrote of {pruned.name}; "
            "let the network give tensors alone, or export weights only (dense)"
        ) from error
    return lambda samples: samples.through(module)


FORMAT = ExportFormat(
    "torch-export",
    "A program of torch.export, which runs without the code.",
    _encode,
    _reopen,
    SINGLE_PRECISION,
    load="program = torch.export.load({path}).module()",
)
