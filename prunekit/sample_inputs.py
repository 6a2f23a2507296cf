"""Where samples come from: the calibration data of a task, or random numbers of a given shape.

This module must not know masks, files or how a network was pruned.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError
from prunekit.samples import Samples
from prunekit.seeds import Seeds
from prunekit.tasks import Task

MOST = 32
"""Samples of a calibration batch that are kept: what the largest batch that is measured needs."""

_FORM = "expected sizes such as 3x55x47, or 128:0..999 for whole numbers from 0 to 999"


class _CalledError(Exception):
    """Ends a forward pass of which only the arguments are wanted."""


def task_samples(task: Task, model: nn.Module, seeds: Seeds) -> Samples:
    """Return what the deployed network is called with on the first calibration batch of a task, up to ``MOST`` samples.

    Args:
        task: set up.
        model: in evaluation mode, on the CPU.
        seeds: of the run.

    Raises:
        ConfigError: there is no calibration batch, or ``Task.forward`` does not call the deployed network.
    """
    batches = task.batches("calibration", 0, seeds)
    if not len(batches):
        raise ConfigError(f"task {task.name!r} has no calibration batch to take sample inputs from")
    samples = called_with(task.deployed(model), lambda: task.forward(model, batches[0]))
    if samples is None:
        raise ConfigError(
            f"the forward of task {task.name!r} does not call its deployed network, so its inputs are not known; "
            "let it call that module, or export the network as file.py:function with --input"
        )
    return samples


def called_with(network: nn.Module, run: Callable[[], Any]) -> Samples | None:
    """Return what a network is called with first when something is run, up to ``MOST`` samples.

    Args:
        network: any module; nothing is computed in it.
        run: is ended by the call. Without one, it runs to its end, and the result is ``None``.
    """
    called: list[Samples] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        called.append(Samples(arguments, keywords))
        raise _CalledError

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    except _CalledError:
        pass
    finally:
        hook.remove()
    return called[0].take(min(called[0].count, MOST)) if called else None


def random_samples(shapes: Sequence[str], dtype: torch.dtype) -> Samples:
    """Return a batch of ``MOST`` random samples, the same ones every time.

    Args:
        shapes: one for each argument of the network: the shape of one sample, without the batch. "3x55x47" are normal
            numbers, "128:0..999" whole numbers (token ids) from 0 to 999.
        dtype: of the normal numbers.

    Raises:
        ConfigError: a shape that is not understood.
    """
    return Samples(tuple(_random(text, number, dtype) for number, text in enumerate(shapes)))


def _random(text: str, number: int, dtype: torch.dtype) -> Tensor:
    found = re.fullmatch(r"([1-9]\d*(?:x[1-9]\d*)*)(?::(\d+)\.\.(\d+))?", text, re.ASCII)
    if found is None:
        raise ConfigError(f"--input is {text!r}, {_FORM}; the batch is not counted")
    shape = (MOST, *map(int, found[1].split("x")))
    generator = Seeds(0).generator("sample inputs", number)
    low, high = (int(found[2]), int(found[3])) if found[2] else (0, 0)
    if low > high:
        raise ConfigError(f"--input is {text!r}, which has no whole number, {_FORM}")
    try:
        if found[2] is None:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.randint(low, high + 1, shape, generator=generator)
    except (RuntimeError, TypeError, ValueError) as error:  # no memory; numbers beyond 64 bits
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"--input is {text!r}, of which {MOST} samples cannot be made: {reason}") from error
