import io

import pytest
from rich.console import Console

from prunekit.contracts import events
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.schedule import Budget, MaskUpdate, Plan, Stage
from prunekit.reporting.progress import LiveProgress, PlainProgress

PLAN = Plan((Stage("dense", Budget(20, "steps")), Stage("f", Budget(10, "steps"))))


def report(display, tmp_path):
    display.prunekit_run_started(events.RunStarted(tmp_path, "400 faces [RGB]", PLAN, (20, 10), (0, 5), ("a note",)))
    display.prunekit_stage_started(events.StageStarted(0, "dense", 20, 5))
    display.prunekit_epoch_finished(events.EpochFinished(0, 2, 20, 20, 0.25, 0.1, 1.0))
    evaluation = Evaluation("accuracy", {"accuracy": 0.875})
    display.prunekit_stage_finished(events.StageFinished(0, "dense", {}, {"f": 8}, {"f": 8}, evaluation, 61))
    display.prunekit_stage_started(events.StageStarted(1, "f", 10, 0))
    update = events.LayerUpdate(0.5, 4, 8, 1.0, 0.5)
    display.prunekit_masks_updated(events.MasksUpdated(1, 0, {"f": update}, 0.1))
    display.prunekit_stage_finished(events.StageFinished(1, "f", {"f": 0.5}, {"f": 4}, {"f": 8}, evaluation, 1))


def written(display_class, tmp_path, *, terminal):
    file = io.StringIO()
    report(display_class(Console(file=file, force_terminal=terminal, highlight=False, width=60)), tmp_path)
    return file.getvalue()


def test_plain_lines_report_a_run_without_escape_codes(tmp_path):
    text = written(PlainProgress, tmp_path, terminal=False)
    assert "\x1b" not in text
    for words in (
        "400 faces [RGB]",
        "note: a note",
        "resuming at stage 1, step 5",
        "2 stages, in steps: dense 20, f 10",
        "[1/2] dense",
        "epoch 2, step 20/20: loss 0.25, learning rate 0.1",
        "accuracy 0.8750; weights left 1; 0:01:01",
        "f: keeps 4 of 8 (0.5), mean score 1 (kept), 0.5 (all)",
        "weights left 0.5",
    ):
        assert words in text


def test_a_stage_with_many_updates_has_one_line_per_update(tmp_path):
    file = io.StringIO()
    display = PlainProgress(Console(file=file, highlight=False, width=60))
    updates = tuple(MaskUpdate(at, {"f": 0.5, "g": 0.5}) for at in (0.1, 0.2, 0.3, 0.4))
    plan = Plan((Stage("gradual", Budget(20, "steps"), updates),))
    display.prunekit_run_started(events.RunStarted(tmp_path, "faces", plan, (20,), None))
    layer = events.LayerUpdate(0.5, 4, 8, 1.0, 0.5)
    display.prunekit_masks_updated(events.MasksUpdated(0, 4, {"f": layer, "g": layer}, 0.1))
    display.prunekit_masks_updated(events.MasksUpdated(0, 6, {"f": layer}, 0.1))
    assert file.getvalue().splitlines()[2:] == [
        "  step 4: keeps 8 of 16 (0.5) in 2 layers, updated in 0.1 s",
        "  step 6: keeps 4 of 8 (0.5) in 1 layer, updated in 0.1 s",
    ]


def test_an_update_without_scores_prints_no_score(tmp_path):
    file = io.StringIO()
    display = PlainProgress(Console(file=file, highlight=False, width=60))
    display.prunekit_run_started(events.RunStarted(tmp_path, "faces", PLAN, (20, 10), None))
    nan = float("nan")
    display.prunekit_masks_updated(events.MasksUpdated(1, 0, {"f": events.LayerUpdate(1.0, 8, 8, nan, nan)}, 0.1))
    assert "  f: keeps 8 of 8 (1)\n" in file.getvalue()


@pytest.mark.parametrize("stop_early", [False, True])
def test_in_a_terminal_a_bar_advances_and_the_cursor_is_restored(tmp_path, stop_early):
    file = io.StringIO()
    display = LiveProgress(Console(file=file, force_terminal=True, highlight=False, width=100))
    display.prunekit_run_started(events.RunStarted(tmp_path, "faces", PLAN, (20, 10), None))
    display.prunekit_stage_started(events.StageStarted(0, "dense", 20, 0))
    display.prunekit_step_finished(events.StepFinished(0, 10, 20))
    if stop_early:
        display.prunekit_run_stopped()
    else:
        evaluation = Evaluation("accuracy", {"accuracy": 0.875})
        display.prunekit_stage_finished(events.StageFinished(0, "dense", {}, {"f": 8}, {"f": 8}, evaluation, 61))
    text = file.getvalue()
    assert "10/20" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
