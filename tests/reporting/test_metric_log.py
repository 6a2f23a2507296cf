import json

import pytest

from prunekit.contracts import events
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.schedule import Plan
from prunekit.errors import CheckpointError
from prunekit.reporting.metric_log import MetricLog


def started(folder, resumed_at=None):
    return events.RunStarted(folder, "", Plan(()), (), resumed_at)


def fill(log, folder):
    """Log stage 0 (steps 5 and 10), then stage 1 with an update at 0 and at 5."""
    log.prunekit_run_started(started(folder))
    for step in (5, 10):
        log.prunekit_epoch_finished(events.EpochFinished(0, step // 5, step, 10, 0.5, 0.1, 1.0))
    log.prunekit_stage_finished(
        events.StageFinished(0, "dense", {}, {"f": 4}, {"f": 8}, Evaluation("a", {"a": 1.0}), 2)
    )
    for step in (0, 5):
        update = events.LayerUpdate(0.5, 4, 8, 1.0, 0.5)
        log.prunekit_masks_updated(events.MasksUpdated(1, step, {"f": update}, 0.1))
        log.prunekit_epoch_finished(events.EpochFinished(1, 1, step + 5, 10, 0.5, 0.1, 1.0))


def lines(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(entry["event"].split("_")[0], entry["stage"], entry.get("step")) for entry in entries]


WHOLE = [
    ("epoch", 0, 5),
    ("epoch", 0, 10),
    ("stage", 0, None),
    ("masks", 1, 0),
    ("epoch", 1, 5),
    ("masks", 1, 5),
    ("epoch", 1, 10),
]


def test_every_notification_is_logged_as_one_line(tmp_path):
    fill(MetricLog(), tmp_path)
    assert lines(tmp_path) == WHOLE


@pytest.mark.parametrize(
    ("checkpoint", "kept"), [((0, 5), 1), ((0, 7), 1), ((1, 0), 3), ((1, 3), 4), ((1, 5), 5), ((2, 0), 7)]
)
def test_a_resumed_run_keeps_only_the_lines_before_its_checkpoint(tmp_path, checkpoint, kept):
    fill(MetricLog(), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch_fin')  # cut off by a crash
    MetricLog().prunekit_run_started(started(tmp_path, checkpoint))
    assert lines(tmp_path) == WHOLE[:kept]


def test_a_line_without_a_newline_is_not_joined_with_the_next(tmp_path):
    fill(MetricLog(), tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    log = MetricLog()
    log.prunekit_run_started(started(tmp_path, (2, 0)))
    log.prunekit_epoch_finished(events.EpochFinished(2, 1, 5, 10, 0.5, 0.1, 1.0))
    assert lines(tmp_path) == [*WHOLE, ("epoch", 2, 5)]


def test_an_unwritable_log_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        MetricLog().prunekit_run_started(started(tmp_path))


def test_a_resumed_run_removes_foreign_lines(tmp_path):
    fill(MetricLog(), tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'5\n\xff\xfe\n{"event": "epoch_finished"}\n')
    MetricLog().prunekit_run_started(started(tmp_path, (2, 0)))
    assert lines(tmp_path) == WHOLE


def test_nan_is_logged_as_null(tmp_path):
    log = MetricLog()
    log.prunekit_run_started(started(tmp_path))
    log.prunekit_epoch_finished(events.EpochFinished(0, 1, 5, 5, float("nan"), 0.1, 1.0))
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None
