"""A third-party listener: writes the main figure of each stage to ``curve.csv`` in the run folder."""

import csv
from pathlib import Path

from prunekit import hookimpl
from prunekit.contracts.events import RunStarted, StageFinished


class Curve:
    """One for each run: prunekit calls the class."""

    @hookimpl
    def prunekit_run_started(self, event: RunStarted) -> None:
        """Remember where the run writes."""
        self.file = Path(event.folder, "curve.csv")

    @hookimpl
    def prunekit_stage_finished(self, event: StageFinished) -> None:
        """Append stage, weights left and figure."""
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([event.name, event.weights_left, event.evaluation.value])
