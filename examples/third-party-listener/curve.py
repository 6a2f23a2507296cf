"""A third-party listener that writes the main figure of each stage to ``curve.csv`` in the run folder."""

import csv
from pathlib import Path

from prunekit import hookimpl
from prunekit.contracts.events import RunStarted, StageFinished


class Curve:
    """The listener of one run: prunekit calls the class to make it."""

    @hookimpl
    def prunekit_run_started(self, event: RunStarted) -> None:
        """Note the run folder."""
        self.file = Path(event.folder, "curve.csv")

    @hookimpl
    def prunekit_stage_finished(self, event: StageFinished) -> None:
        """Append the stage's name, weights left and main figure."""
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([event.name, event.weights_left, event.evaluation.value])
