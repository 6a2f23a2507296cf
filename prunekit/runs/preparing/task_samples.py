"""Sample inputs of a task's deployed network, taken from its calibration data."""

from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.errors import ConfigError
from prunekit.layers.samples import Samples, called_with


def task_samples(task: Task, model: nn.Module, seeds: Seeds) -> Samples:
    """Return the inputs of the deployed network on a task's first calibration batch, at most ``MOST`` samples.

    Args:
        task: with its data read.
        model: in evaluation mode, on the CPU.
        seeds: of the run.

    Raises:
        ConfigError: no calibration batch, or a ``Task.forward`` that does not call the deployed network.
    """
    batches = task.batches("calibration", 0, seeds)
    if not len(batches):
        raise ConfigError(f"task {task.name!r} has no calibration batch to take sample inputs from")
    samples = called_with(task.deployed(model), lambda: task.forward(model, batches[0]))
    if samples is None:
        raise ConfigError(
            f"the inputs of the deployed network of task {task.name!r} are unknown, because its forward does not call "
            "that network; let it, or export the network as file.py:function with --input"
        )
    return samples
