"""The folder of a run: the paths in it, and functions that check, create and tidy it.

It must not know how a run works. Only the first rank writes.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit.errors import CheckpointError
from prunekit.files.atomic import make_writable_folder, refusal, remove_temporaries, sync_file, write_atomically
from prunekit.files.headers import encode_json, read_json, refuse_other_kinds
from prunekit.runs.first_rank import on_first_rank


@attrs.frozen
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The recipe that starts this run again."""
        return self.path / "config.toml"

    @property
    def plan(self) -> Path:
        """The stages, as JSON."""
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        """Versions, commit, seed and hardware."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line, written by the metric log."""
        return self.path / "metrics.jsonl"

    @property
    def masks(self) -> Path:
        """The masks after the last finished stage."""
        return self.path / "masks.safetensors"

    @property
    def model(self) -> Path:
        """The deployed network after the last finished stage, dropped weights exactly 0."""
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder that ``--resume`` reads."""
        return self.path / "checkpoints"

    @property
    def starting(self) -> Path:
        """A marker that exists from the first moment of a run until it can be resumed."""
        return self.path / ".starting"

    @property
    def results(self) -> tuple[Path, ...]:
        """All files of a run outside its checkpoints."""
        return (self.config, self.plan, self.environment, self.metrics, self.masks, self.model)


@on_first_rank
def check_new_run(folder: RunFolder, *, force: bool) -> None:
    """Check that a new run can be written to the folder; nothing in it is changed.

    Args:
        folder: of the new run.
        force: whether an earlier run in it may be overwritten.

    Raises:
        CheckpointError: when the folder cannot be written, or holds files with the names of a run's and ``force`` is
            not set.
    """
    make_writable_folder(folder.path)
    if _was_cut_off(folder):
        return
    found = [path.name for path in folder.results if path.exists()]
    if any(folder.checkpoints.glob("*")):
        found.append(folder.checkpoints.name)
    if found and not force:
        raise CheckpointError(
            f"{folder.path} already holds a run ({', '.join(found)}); resume it (--resume {folder.path}), "
            "overwrite it (--force) or choose another --out"
        )


@on_first_rank
def create_run_folder(folder: RunFolder, *, force: bool) -> None:
    """Create the folder and mark it as starting; with ``force``, remove an earlier run in it.

    Raises:
        CheckpointError: see ``check_new_run``.
    """
    check_new_run(folder, force=force)
    write_atomically(folder.starting, b"")
    try:
        remove_temporaries(folder.path)
        for path in folder.results:
            path.unlink(missing_ok=True)
        if folder.checkpoints.exists():
            shutil.rmtree(folder.checkpoints)
    except OSError as error:
        raise CheckpointError(f"the earlier run in {folder.path} cannot be removed: {error}") from error
    make_writable_folder(folder.checkpoints)


@on_first_rank
def mark_resumable(folder: RunFolder) -> None:
    """Remove the mark of ``create_run_folder``, once everything that a resumption needs has been written.

    Raises:
        CheckpointError: when the folder cannot be written.
    """
    try:
        folder.starting.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(folder.starting, error) from error


def _was_cut_off(folder: RunFolder) -> bool:
    """Return whether a run was killed here before it could be resumed; then nothing in it is worth keeping."""
    return folder.starting.exists() and not folder.config.exists()


@on_first_rank
def adopt_run(folder: RunFolder, source: RunFolder) -> None:
    """Copy checkpoints, kept weights and the metric log of another run, to continue from there.

    Raises:
        CheckpointError: when something cannot be read or written.
    """
    for path in (*sorted(source.checkpoints.glob("*.safetensors")), source.metrics):
        target = (folder.path if path == source.metrics else folder.checkpoints) / path.name
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise CheckpointError(f"{path} of the run to continue from cannot be read: {error.strerror}") from error
        write_atomically(target, content)


def check_resumable(folder: RunFolder) -> None:
    """Check that the folder holds a run that can be resumed, and can be written.

    Raises:
        CheckpointError: when it does not, or cannot.
    """
    refuse_other_kinds(folder.path, ("run",), CheckpointError)
    try:
        begun = folder.config.is_file()
    except OSError as error:
        raise CheckpointError(f"{folder.path} cannot be read: {error.strerror}; give a run folder") from error
    if not begun:
        early = "the run was stopped before it could be resumed; repeat the command that started it"
        reason = early if _was_cut_off(folder) else f"it has no {folder.config.name}"
        raise CheckpointError(f"{folder.path} holds no run to resume ({reason})")
    make_writable_folder(folder.checkpoints)


@on_first_rank
def remove_leftovers(folder: RunFolder) -> None:
    """Remove half-written files of a killed run; no other process may be working in the folder.

    Raises:
        CheckpointError: when a file cannot be removed.
    """
    for path in (folder.path, folder.checkpoints):
        remove_temporaries(path)


@on_first_rank
def sync_metrics(folder: RunFolder) -> None:
    """Make the metric log, if a plugin writes one, survive a power cut.

    Raises:
        CheckpointError: when the disk is full.
    """
    if folder.metrics.exists():
        sync_file(folder.metrics)


@on_first_rank
def add_environment(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Append the environment of a resumption to that of the start.

    Raises:
        CheckpointError: when it cannot be written, or a file of another kind has its name.
    """
    try:
        known = read_json(folder.environment, "environment", CheckpointError)
    except (OSError, ValueError):  # nothing depends on it
        known = {}
    write_json(folder.environment, "environment", {**known, "resumed": [*known.get("resumed", []), facts]})


def write_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write indented JSON with the header of a kind of file."""
    write_atomically(path, encode_json(kind, content))


def free_folder(parent: Path, name: str) -> Path:
    """Return the first of ``parent/name``, ``parent/name-2``, ``parent/name-3`` ... that does not exist."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
