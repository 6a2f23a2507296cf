"""Sample inputs of a task's deployed network, taken from its calibration data."""

from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.errors import ConfigError
from prunekit.layers.samples import Samples, called_with


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
