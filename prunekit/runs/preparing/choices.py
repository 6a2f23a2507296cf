"""Step 1 of a preparation, choose: the plugins that a configuration names, built with their options.

It must not know networks, given files or plans.
"""

from collections.abc import Callable
from functools import partial

import attrs

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.schedule import Schedule
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.contracts.training import Training
from prunekit.distributed.devices import pick_device
from prunekit.plugins.registry import Registry
from prunekit.runs.config import RunConfig, merge_training


@attrs.frozen
class ChosenPlugins:
    """The plugins of a run.

    Attributes:
        task: with its data read.
        data: one line that describes the task's data.
        make_criterion: returns a fresh criterion.
        schedule: makes the plan.
        training: the task's settings with the user's overrides.
        seeds: the root of all randomness.
    """

    task: Task
    data: str
    make_criterion: Callable[[], Criterion]
    schedule: Schedule
    training: Training
    seeds: Seeds


def choose_plugins(config: RunConfig, registry: Registry, ready: tuple[Task, str] | None = None) -> ChosenPlugins:
    """Build task, criterion and schedule, and read the task's data.

    Args:
        config: names them and their options.
        registry: knows the classes.
        ready: a task of the same options and seed whose data has been read, and the line that describes its data;
            ``None``: build the task and read its data.

    Raises:
        ConfigError: an unknown name or option, or a device that does not exist.
        DataError: from the task.
    """
    task = ready[0] if ready else registry.make_task(config.task.name, config.task.options)
    make_criterion = partial(registry.make_criterion, config.criterion.name, config.criterion.options)
    make_criterion()  # report a wrong option or device before spending time on the data
    pick_device(config.device)
    schedule = registry.make_schedule(config.schedule.name, config.schedule.options)
    training = merge_training(task.training(), config.training)
    seeds = Seeds(config.seed)
    data = ready[1] if ready else task.setup(seeds)
    return ChosenPlugins(task, data, make_criterion, schedule, training, seeds)
