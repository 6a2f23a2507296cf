"""The result of one run of a sweep, as a record and as a file in the run's folder.

It must not know how the run was carried out.
"""

from collections.abc import Mapping
from pathlib import Path

import attrs
import cattrs

from prunekit.errors import CheckpointError
from prunekit.files.atomic import write_atomically
from prunekit.files.headers import encode_json, read_json

_FILE = "result.json"


@attrs.frozen
class Outcome:
    """The figures of a finished run.

    Attributes:
        metrics: the task's metrics after the last stage, and "training_loss", the mean over its last epoch.
        kept: kept weights.
        weights: prunable weights.
        seconds: wall time of the last stage.
        correlation_before: layer -> mean absolute correlation of the connections that the last stage's pruning kept,
            before that stage; empty if nothing was pruned, or if it was not requested.
        correlation_after: the same connections at the end of the stage.
    """

    metrics: Mapping[str, float]
    kept: int
    weights: int
    seconds: float
    correlation_before: Mapping[str, float] = attrs.field(factory=dict)
    correlation_after: Mapping[str, float] = attrs.field(factory=dict)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write the outcome of a run into its folder, which marks the run as complete.

    Raises:
        CheckpointError: when it cannot be written.
    """
    write_atomically(folder / _FILE, encode_json("result", cattrs.unstructure(outcome)))


def read_outcome(folder: Path) -> Outcome | None:
    """Return the outcome of the run in a folder; ``None`` if the run is not complete.

    Raises:
        CheckpointError: when its file cannot be read.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        return cattrs.structure(read_json(path, "result", CheckpointError), Outcome)
    except (OSError, ValueError, cattrs.BaseValidationError) as error:
        raise CheckpointError(
            f"the result {path} cannot be read: {error}; remove the folder {folder} to repeat the run"
        ) from error
