import json

import pytest

from prunekit.errors import ConfigError
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.sweep.cells import make_cells
from prunekit.runs.sweep.grid import read_grid
from prunekit.runs.sweep.outcome import Outcome
from prunekit.runs.sweep.run_tree import stage_runs
from prunekit.runs.sweep.summary import check_metrics, summarise, to_json
from prunekit.runs.sweep.summary_tables import differences_table, figures_table, to_markdown

RECIPE = {
    "task": {"name": "prunekit.testing:ToyTask"},
    "sweep": {
        "structures": ["hidden=1/4"],
        "criteria": ["correlation", "random"],
        "schedules": ["layerwise", {"name": "layerwise", "scratch": "long"}],
        "metrics": ["accuracy"],
    },
}
SEEDS = (0, 1, 2)
# cell -> for each seed, hundredths by which it is better than the dense network
BONUS = {
    "correlation; layerwise": (3, 4, 5),
    "random; layerwise": (2, 2, 2),
    "correlation; layerwise (scratch=long)": (-4, 0, 4),
    "random; layerwise (scratch=long)": (0, 0, 0),
    "control": (1, 1, 1),
    "dense": (0, 0, 0),
}


@pytest.fixture
def summary():
    """Return the summary of made-up outcomes."""
    manager = make_manager(third_party=False)
    grid = read_grid(RECIPE)
    cells = make_cells(grid, manager, collect(manager))
    outcomes = {}
    for cell in cells:
        key = cell.kind if cell.kind != "pruned" else f"{cell.criterion}; {cell.schedule}"
        for seed, bonus in zip(SEEDS, BONUS[key], strict=True):
            runs = list(stage_runs(cell, seed))
            for run in runs:
                kept = 712 if run.stages > 1 and cell.kind == "pruned" else 1576
                correlations = dict.fromkeys(run.layers, 0.1 * (seed + 1))
                metrics = {"accuracy": 0.8 + seed / 20 + bonus / 100}
                outcome = Outcome(metrics, kept, 1576, 1.0, correlations, correlations)
                # An earlier stage of one cell may be the last stage of another.
                outcomes |= {run.name: outcome} if run == runs[-1] else {}
                outcomes.setdefault(run.name, outcome)
    return summarise(grid, cells, SEEDS, outcomes)


def difference(summary, question, criterion="correlation", schedule="layerwise"):
    for comparison in summary.comparisons:
        row = summary.rows[comparison.first]
        if (comparison.question, row.criterion, row.schedule) == (question, criterion, schedule):
            return comparison.differences["accuracy"]
    raise KeyError(question)


def test_metrics_are_means_over_the_seeds(summary):
    dense = summary.rows[0]
    assert dense.kind == "dense"
    assert dense.metrics["accuracy"].value == pytest.approx(0.85)
    assert dense.by_seed["accuracy"] == pytest.approx((0.8, 0.85, 0.9))
    assert summary.rows[1].weights_left == pytest.approx(712 / 1576)


def test_differences_are_paired_within_seeds(summary):
    found = difference(summary, "pruned - dense, trained on for as many steps")
    assert found.value == pytest.approx(0.03)
    assert found.half_width == pytest.approx(4.303 * 0.01 / 3**0.5, abs=1e-5)
    assert found.verdict == "more"
    assert difference(summary, "pruned - dense, not trained on").value == pytest.approx(0.04)


def test_the_first_criterion_and_schedule_are_compared_with_every_other(summary):
    assert difference(summary, "correlation - random").value == pytest.approx(0.02)
    assert difference(summary, "correlation - random", schedule="layerwise (scratch=long)").verdict == "inconclusive"
    assert difference(summary, "layerwise - layerwise (scratch=long)").value == pytest.approx(0.04)


def test_only_the_first_schedule_is_compared_with_the_dense_network_that_was_not_trained_on(summary):
    with pytest.raises(KeyError):
        difference(summary, "pruned - dense, not trained on", schedule="layerwise (scratch=long)")


def test_a_row_has_correlations_only_if_its_last_stage_pruned(summary):
    scratch = next(row for row in summary.rows if "scratch" in row.schedule)
    assert summary.rows[1].correlation_before.value == pytest.approx(0.2)
    assert scratch.correlation_before is None
    assert summary.rows[0].correlation_before is None


def test_a_control_takes_as_many_steps_as_the_pruned_cell():
    manager = make_manager(third_party=False)
    grid = read_grid({**RECIPE, "sweep": {**RECIPE["sweep"], "schedules": ["layerwise", "one-shot"]}})
    cells = make_cells(grid, manager, collect(manager))
    outcomes = {run.name: Outcome({"accuracy": 0.5}, 1, 1, 1.0) for cell in cells for run in stage_runs(cell, 0)}
    compared = [
        [[stage.budget for stage in cells[index].plan.stages] for index in (comparison.first, comparison.second)]
        for comparison in summarise(grid, cells, (0,), outcomes).comparisons
        if comparison.question == "pruned - dense, trained on for as many steps"
    ]
    assert len(compared) == 2
    assert all(pruned == control for pruned, control in compared)


def test_the_data_is_json_and_the_page_has_both_tables(summary):
    data = json.loads(json.dumps(to_json(summary)))
    assert data["rows"][1]["metrics"]["accuracy"]["count"] == 3
    text = to_markdown(summary, "table")
    assert "| hidden=1/4 | correlation | layerwise | 0.452 | 0.8900 ± 0.0346 |" in text
    assert "| hidden=1/4 | correlation, layerwise | correlation - random | +2.00 [-0.48, +4.48] | 3 of 3 |" in text
    for head, lines in (figures_table(summary), differences_table(summary)):
        assert all(len(line) == len(head) for line in lines)


def test_a_metric_that_the_task_does_not_report_is_refused():
    recipe = {**RECIPE, "sweep": {**RECIPE["sweep"], "metrics": ["acuracy"]}}
    with pytest.raises(ConfigError, match=r"'acuracy', which the task does not report \(did you mean 'accuracy'"):
        check_metrics(read_grid(recipe), Outcome({"accuracy": 1.0}, 1, 1, 1.0))


def test_entries_of_training_and_orders_of_a_structure_are_compared():
    recipe = {
        **RECIPE,
        "sweep": {
            "structures": ["hidden=1/4 b=1/2", "b=1/2 hidden=1/4", "hidden=1/4 b=1/4"],
            "criteria": ["random"],
            "training": [{}, {"retraining_rate": 0.5}],
        },
    }
    manager = make_manager(third_party=False)
    grid = read_grid(recipe)
    cells = make_cells(grid, manager, collect(manager))
    outcomes = {run.name: Outcome({"accuracy": 0.5}, 1, 1, 1.0) for cell in cells for run in stage_runs(cell, 0)}
    questions = [comparison.question for comparison in summarise(grid, cells, (0,), outcomes).comparisons]
    assert questions.count("as the recipe - retraining_rate=0.5") == 3
    assert questions.count("hidden=1/4 b=1/2 - b=1/2 hidden=1/4") == 2
    assert not any(question.endswith("- hidden=1/4 b=1/4") for question in questions)
    assert questions.count("pruned - dense, trained on for as many steps") == 6


def test_distributions_have_a_column_and_are_compared_at_equal_density():
    manager = make_manager(third_party=False)
    rules = ["uniform", "global"]
    base = {"task": RECIPE["task"], "schedule": {"name": "one-shot"}, "criterion": {"name": "magnitude"}}
    grid = read_grid({**base, "sweep": {"densities": [0.5, 0.25], "distributions": rules}})
    cells = make_cells(grid, manager, collect(manager))
    outcome = Outcome({"accuracy": 0.5}, 1, 2, 1.0, {}, {})
    names = [run.name for cell in cells for seed in (0, 1) for run in stage_runs(cell, seed)]
    summary = summarise(grid, cells, (0, 1), dict.fromkeys(names, outcome))
    head, lines = figures_table(summary)
    assert head[:3] == ["network", "allocation", "criterion"]
    assert [line[:3] for line in lines[1:3]] == [
        ["*=0.5", "uniform", "magnitude"],
        ["dense, trained on as for *=0.5", "uniform", ""],
    ]
    compared = [item for item in summary.comparisons if item.question == "uniform - global"]
    assert [summary.rows[item.first].structure for item in compared] == ["*=0.5", "*=0.25"]
    assert [summary.rows[item.second].allocation for item in compared] == ["global", "global"]
    controls = [item for item in summary.comparisons if item.question.endswith("for as many steps")]
    assert all(summary.rows[item.first].allocation == summary.rows[item.second].allocation for item in controls)
    assert len(controls) == 4
