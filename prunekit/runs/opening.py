"""Open the folder of a run: start a new run, continue another run's, or resume one.

A resumption compares what was requested then with what is requested now; only then does it read the checkpoint. This
module must not know how stages are trained.
"""

import json
from typing import Any

from prunekit.contracts.schedule import Start, to_json
from prunekit.distributed.ranks import wait_for_all
from prunekit.errors import ResumeError
from prunekit.files.atomic import write_atomically
from prunekit.files.headers import read_json
from prunekit.runs.active_run import ActiveRun
from prunekit.runs.checkpoints.checkpoint import Checkpoint
from prunekit.runs.environment import environment
from prunekit.runs.first_rank import on_first_rank
from prunekit.runs.folder import (
    RunFolder,
    add_environment,
    adopt_run,
    create_run_folder,
    mark_resumable,
    remove_leftovers,
    write_json,
)
from prunekit.runs.recipes import to_toml
from prunekit.runs.run_store import keep_weights, restore, take_given

Opened = tuple[Checkpoint | None, tuple[str, ...]]
"""The checkpoint to continue from (``None``: begin with the first stage), and notes for the user."""


def start_run(run: ActiveRun, source: RunFolder | None = None, *, force: bool = False) -> Opened:
    """Create the folder and describe the run in it.

    Args:
        run: the new run.
        source: another run whose finished stages are the first ones of this run; they are taken over.
        force: overwrite a run that is in the folder.

    Raises:
        CheckpointError: when the folder is in use or cannot be written, or ``source`` cannot be read.
    """
    create_run_folder(run.folder, force=force)
    if source is not None:
        adopt_run(run.folder, source)
    wait_for_all()
    checkpoint, notes = restore(run) if source is not None else (None, ())
    if checkpoint is None:
        _begin(run)
    else:
        describe(run)
    return checkpoint, notes


def resume_run(run: ActiveRun) -> Opened:
    """Continue the run in the folder from its newest readable checkpoint.

    Raises:
        ResumeError: when the recipe now gives different stages, or no checkpoint can be read or fits.
    """
    requested_then, requested_now = read_stages(run.folder), to_json(run.prepared.plan)
    check_same_stages(run.folder, requested_then, requested_now)
    remove_leftovers(run.folder)
    wait_for_all()
    checkpoint, notes = restore(run)
    if checkpoint is None:
        _begin(run)
        return None, ("there is no checkpoint; the run starts over",)
    add_environment(run.folder, _environment(run))
    return checkpoint, notes


def read_stages(folder: RunFolder) -> object:
    """Return the stages that the run began with, as JSON values; ``None`` if their file is missing or damaged.

    Raises:
        ResumeError: when a file of another kind has the name of the plan.
    """
    try:
        return read_json(folder.plan, "plan", ResumeError)
    except (OSError, ValueError):
        return None  # nothing else depends on the file


@on_first_rank
def check_same_stages(folder: RunFolder, then: object, now: object) -> None:
    """Check that the recipe still gives the stages that the run began with.

    Args:
        folder: of the run.
        then: the stages that were requested when the run began; ``None``: unknown.
        now: the stages that are requested now, as ``to_json`` gives them.

    Raises:
        ResumeError: when they differ, because the recipe or a plugin was changed.
    """
    if then is not None and then != json.loads(json.dumps(now, default=str)):
        raise ResumeError(
            f"{folder.config} now gives different stages from those in {folder.plan}, with which the run began; undo "
            "the change in the recipe or in a plugin, or start a new run"
        )


def _begin(run: ActiveRun) -> None:
    """Save given masks and weights, and initial weights if a stage goes back to them; then describe the run."""
    take_given(run)
    if any(stage.start.kind == "initial" for stage in run.prepared.plan.stages):
        keep_weights(run, Start("initial"))
    describe(run)


@on_first_rank
def describe(run: ActiveRun) -> None:
    """Write environment, stages and recipe; the recipe comes last, because it makes the folder resumable."""
    folder = run.folder
    write_json(folder.environment, "environment", _environment(run))
    write_json(folder.plan, "plan", to_json(run.prepared.plan))
    write_atomically(folder.config, to_toml(run.config).encode())
    mark_resumable(folder)


def _environment(run: ActiveRun) -> dict[str, Any]:
    config = run.config
    names = (config.task.name, config.criterion.name, config.schedule.name)
    return environment(config.seed, str(run.hardware), names)
