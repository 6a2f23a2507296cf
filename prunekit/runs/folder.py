"""The folder of a run: what lies in it, and who may write to it.

It must not know how a run goes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import attrs

from prunekit.errors import CheckpointError, ResumeError
from prunekit.files.atomic import make_writable_folder, refusal, remove_temporaries, sync_file, write_atomically


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
        """One JSON object a line, written by the metric log."""
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
        """What ``--resume`` reads."""
        return self.path / "checkpoints"

    @property
    def _starting(self) -> Path:
        """There from the first moment of a run until it can be resumed."""
        return self.path / ".starting"

    @property
    def _results(self) -> tuple[Path, ...]:
        return (self.config, self.plan, self.environment, self.metrics, self.masks, self.model)

    def check(self, *, force: bool) -> None:
        """See that a new run can be written here, and change nothing.

        Raises:
            CheckpointError: when results, of a run or of somebody else, are there and ``force`` is not given, or
                nothing can be written.
        """
        make_writable_folder(self.path)
        if self._is_cut_off():
            return
        there = [path.name for path in self._results if path.exists()]
        if any(self.checkpoints.glob("*")):
            there.append(self.checkpoints.name)
        if there and not force:
            raise CheckpointError(
                f"{self.path} holds a run already ({', '.join(there)}); go on with it (--resume {self.path}), "
                "write over it (--force) or choose another --out"
            )

    def create(self, *, force: bool) -> None:
        """Make the folder ready; with ``force`` an old run in it is gone. ``begun`` says that the run can be resumed.

        Raises:
            CheckpointError: as ``check``.
        """
        self.check(force=force)
        write_atomically(self._starting, b"")
        self._clear()
        make_writable_folder(self.checkpoints)

    def begun(self) -> None:
        """Say that all is written which a run is resumed from; its recipe last, as the proof of it.

        Raises:
            CheckpointError: when the folder cannot be written.
        """
        try:
            self._starting.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(self._starting, error) from error

    def _is_cut_off(self) -> bool:
        """Say whether a run was killed here before it had begun: nothing in it is worth keeping."""
        return self._starting.exists() and not self.config.exists()

    def adopt(self, source: "RunFolder") -> None:
        """Copy from another run what it would be resumed from: checkpoints, weights to go back to, the metric log.

        Raises:
            CheckpointError: when something cannot be read or written.
        """
        for path in (*sorted(source.checkpoints.glob("*.safetensors")), source.metrics):
            target = (self.path if path == source.metrics else self.checkpoints) / path.name
            try:
                content = path.read_bytes() if path.exists() else b""
            except OSError as error:
                raise CheckpointError(f"{path} of the run to go on from cannot be read: {error.strerror}") from error
            write_atomically(target, content)

    def check_resumable(self) -> None:
        """Raise ``CheckpointError`` unless a run was begun here and the folder can be written."""
        try:
            begun = self.config.is_file()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}; name a run folder") from error
        if not begun:
            wrong = "the run was stopped before it had begun; give the command that started it again"
            absent = f"there is no {self.config.name} in it"
            raise CheckpointError(f"{self.path} holds no run to resume ({wrong if self._is_cut_off() else absent})")
        make_writable_folder(self.checkpoints)

    def check_plan(self, plan: object) -> None:
        """See that the stages are those that the run began with.

        Raises:
            ResumeError: when they are not; the recipe in the folder was changed, or a plugin.
        """
        try:
            began = json.loads(self.plan.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # lost or damaged, and nothing else depends on it
        if began != json.loads(_json(plan)):
            raise ResumeError(
                f"{self.config} now gives other stages than {self.plan}, with which the run began; undo what was "
                "changed in it or in a plugin, or start another run"
            )

    def tidy(self) -> None:
        """Remove what a run that was killed left half written; nobody else may be at work in the folder.

        Raises:
            CheckpointError: when something cannot be removed.
        """
        for folder in (self.path, self.checkpoints):
            remove_temporaries(folder)

    def sync_metrics(self) -> None:
        """Make the lines of the metric log survive a power cut, where some plugin writes them.

        Raises:
            CheckpointError: when the disk is full.
        """
        if self.metrics.exists():
            sync_file(self.metrics)

    def _clear(self) -> None:
        """Remove what a run writes, and nothing else."""
        try:
            remove_temporaries(self.path)
            for path in self._results:
                path.unlink(missing_ok=True)
            if self.checkpoints.exists():
                shutil.rmtree(self.checkpoints)
        except OSError as error:
            raise CheckpointError(f"the old run in {self.path} cannot be removed: {error}") from error

    def add_environment(self, facts: dict[str, Any]) -> None:
        """Note where and how the run goes on, beside what is written of its beginning.

        Raises:
            CheckpointError: when it cannot be written.
        """
        try:
            known = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # nothing depends on it
            known = {}
        self.write_json(self.environment, {**known, "resumed": [*known.get("resumed", []), facts]})

    def write_json(self, path: Path, content: object) -> None:
        """Write JSON that a person can read."""
        write_atomically(path, _json(content).encode())


def _json(content: object) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def free_folder(parent: Path, name: str) -> Path:
    """Return ``parent/name``, or ``parent/name-2`` and so on, whichever is not there yet."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
