"""The metric log: one JSON object per line in ``metrics.jsonl`` of the run folder.

When a run is resumed, the lines written after its checkpoint are removed first, so no line is lost or repeated. This
module must not know more about a run than its notifications.
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
    """Appends a line to the log for every mask update, epoch and stage.

    Attributes:
        path: the log; ``None`` before the run has started.
    """

    path: Path | None = None

    @hookimpl
    def prunekit_run_started(self, event: events.RunStarted) -> None:
        """Create the log, or remove the lines after the checkpoint."""
        self.path = event.folder / _FILE
        if event.resumed_at is None:
            write_atomically(self.path, b"")
        elif self.path.exists():
            kept = "".join(f"{line}\n" for line in self._read().splitlines() if _is_before(line, *event.resumed_at))
            write_atomically(self.path, kept.encode())

    @hookimpl
    def prunekit_masks_updated(self, event: events.MasksUpdated) -> None:
        """Log the counts, densities and mean scores of each layer."""
        self._log("masks_updated", attrs.asdict(event))

    @hookimpl
    def prunekit_epoch_finished(self, event: events.EpochFinished) -> None:
        """Log the loss, the learning rate and the time."""
        self._log("epoch_finished", attrs.asdict(event))

    @hookimpl
    def prunekit_stage_finished(self, event: events.StageFinished) -> None:
        """Log the evaluation and the kept weights."""
        facts = attrs.asdict(event)
        self._log("stage_finished", {"stage": facts.pop("index"), **facts, "weights_left": event.weights_left})

    def _log(self, event: str, facts: dict[str, Any]) -> None:
        assert self.path is not None, "run_started must be the first notification"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # The header is part of the first line, so that every line is an event.
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
    """Return whether a line was written before a checkpoint; False for incomplete and foreign lines."""
    try:
        entry = json.loads(line)
        if entry["event"] == "stage_finished" or entry["stage"] != stage:
            return bool(entry["stage"] < stage)
        # A mask update at the checkpoint's step is repeated.
        return bool(entry["step"] < step or (entry["step"] == step and entry["event"] == "epoch_finished"))
    except (ValueError, TypeError, KeyError):
        return False


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by ``None``."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
