"""The metric log: one JSON object a line in ``metrics.jsonl`` of the run folder.

A resumed run drops the lines behind its checkpoint first, so no line is lost or doubled. It knows a run
from its notifications and nothing else.
"""

import json
import math
from pathlib import Path
from typing import Any

import attrs

from prunekit.contracts import events
from prunekit.contracts.markers import hookimpl
from prunekit.errors import CheckpointError
from prunekit.files.atomic import refusal, write_atomically
from prunekit.files.headers import ENTRY, new_header

_FILE = "metrics.jsonl"


@attrs.define
class MetricLog:
    """Appends a line for every mask update, epoch and stage."""

    path: Path | None = None

    @hookimpl
    def prunekit_run_started(self, event: events.RunStarted) -> None:
        """Begin the file, or go on behind the checkpoint."""
        self.path = event.folder / _FILE
        if event.resumed_at is None:
            write_atomically(self.path, b"")
        elif self.path.exists():
            kept = "".join(f"{line}\n" for line in self._read().splitlines() if _is_before(line, *event.resumed_at))
            write_atomically(self.path, kept.encode())

    @hookimpl
    def prunekit_masks_updated(self, event: events.MasksUpdated) -> None:
        """Log what each layer keeps."""
        self._log("masks_updated", attrs.asdict(event))

    @hookimpl
    def prunekit_epoch_finished(self, event: events.EpochFinished) -> None:
        """Log loss, learning rate and time."""
        self._log("epoch_finished", attrs.asdict(event))

    @hookimpl
    def prunekit_stage_finished(self, event: events.StageFinished) -> None:
        """Log the evaluation."""
        facts = attrs.asdict(event)
        self._log("stage_finished", {"stage": facts.pop("index"), **facts, "weights_left": event.weights_left})

    def _log(self, event: str, facts: dict[str, Any]) -> None:
        assert self.path is not None, "a notification came before run_started"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # In the first line, so that every line is an event.
                header = {} if file.tell() else {ENTRY: new_header("metrics")}
                file.write(json.dumps(_without_nan({**header, "event": event, **facts})) + "\n")
        except OSError as error:
            raise refusal(self.path, error) from error

    def _read(self) -> str:
        assert self.path is not None
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise CheckpointError(f"the metric log {self.path} cannot be read: {error.strerror}") from error


def _is_before(line: str, stage: int, step: int) -> bool:
    """Say whether a line stands before a checkpoint; one cut off by a crash, or none of ours, does not."""
    try:
        entry = json.loads(line)
        if entry["event"] == "stage_finished" or entry["stage"] != stage:
            return bool(entry["stage"] < stage)
        # A mask update at the checkpoint's step is carried out once more.
        return bool(entry["step"] < step or (entry["step"] == step and entry["event"] == "epoch_finished"))
    except (ValueError, TypeError, KeyError):
        return False


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
