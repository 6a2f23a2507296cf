"""A run as one call: from a configuration to a finished run, alone or as one of several ranks.

It joins the launcher's process group, prepares the run, locks its folder and listens for requests to stop. This module
must not know the command line, or how stages are trained.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from signal import Signals

from prunekit.contracts.events import RunFinished
from prunekit.distributed.process_group import process_group
from prunekit.distributed.ranks import own_rank, text_from_first
from prunekit.files.atomic import held_alone
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.absolute_paths import with_absolute_paths
from prunekit.runs.config import RunConfig
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder, check_new_run, check_resumable, free_folder
from prunekit.runs.interruption import Interruption
from prunekit.runs.preparation import PreparedRun, prepare
from prunekit.runs.recipes import build_config, read_recipe, to_toml


def carry_out(
    config: RunConfig,
    *,
    resume: Path | None = None,
    force: bool = False,
    report: Callable[[Signals], object] = lambda _: None,
) -> RunFinished | None:
    """Train, prune and retrain a network; on several ranks, all must call it.

        finished = carry_out(build_config(read_recipe("paper.toml")))
        finished = carry_out(resumed_config(folder), resume=folder)

    Args:
        config: what the user requested.
        resume: the folder of an interrupted run to resume; ``None``: start a new run in ``RunConfig.out``, or in a new
            folder under "runs".
        force: overwrite a run that is in the folder.
        report: called on the first rank with the first request to stop, between any two instructions of the program.

    Returns:
        what the run reached, on the first rank; ``None`` on the others.

    Raises:
        Interrupted: when the user has requested a stop; there is a checkpoint.
        PrunekitError: a wrong configuration, a folder that cannot be used, or whatever ended the run.
    """
    with process_group(config.device):
        # In a function of its own, so that models and tensors are freed before this process leaves the group.
        return _carry_out(config, resume, report, force=force)


def _carry_out(
    config: RunConfig, resume: Path | None, report: Callable[[Signals], object], *, force: bool
) -> RunFinished | None:
    folder = RunFolder(Path(text_from_first(str(_new_folder(config)))) if resume is None else resume)
    manager = make_manager(config.no_plugins)
    registry = collect(manager)
    prepared = prepare(config, manager, registry, resumed=resume is not None)
    if resume is not None:
        check_resumable(folder)
    else:
        check_new_run(folder, force=force)
    interruption, first = Interruption(), own_rank() == 0
    with (
        held_alone(folder.path) if first else nullcontext(),
        interruption.listening(report if first else lambda _: None),
    ):
        finished = run(
            with_absolute_paths(config, registry),
            prepared,
            manager.hook,
            folder,
            resume=resume is not None,
            force=force,
            interruption=interruption,
        )
    return finished if first else None


def resumed_config(folder: Path, no_plugins: Collection[str] = ()) -> RunConfig:
    """Return the configuration with which the run in a folder was started.

    Args:
        folder: of the run.
        no_plugins: names of plugins to disable; without any, the same plugins as at the start.

    Raises:
        CheckpointError: when the folder holds no run that can be resumed.
        ConfigError: when its recipe is damaged.
    """
    check_resumable(RunFolder(folder))
    return build_config(read_recipe(RunFolder(folder).config), {"no_plugins": list(no_plugins) or None})


def preview(config: RunConfig) -> PreparedRun:
    """Prepare a run without giving its weights any values: the layers, the structure and the plan are known.

    Raises:
        PrunekitError: everything that would refuse the run before it trains.
    """
    manager = make_manager(config.no_plugins)
    return prepare(config, manager, collect(manager), device="meta")


def to_recipe(config: RunConfig) -> str:
    """Return the recipe, as TOML, that starts the same run from any working directory."""
    return to_toml(with_absolute_paths(config, collect(make_manager(config.no_plugins))))


def _new_folder(config: RunConfig) -> Path:
    if config.out is not None:
        return Path(config.out)
    task = config.task.name.rpartition(":")[2]
    return free_folder(Path("runs"), f"{task}-{config.criterion.name}-seed{config.seed}")
