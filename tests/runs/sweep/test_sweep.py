"""A sweep as two calls, without the command line."""

import json

import pytest

from prunekit.files.headers import ENTRY
from prunekit.runs.sweep.sweep import carry_out_sweep, plan_sweep

RECIPE = """
[task]
name = "prunekit.testing:ToyTask"
[training]
budget = "4 steps"
retraining = "2 steps"
[sweep]
structures = ["hidden=1/4"]
criteria = ["magnitude"]
metrics = ["accuracy"]
"""


@pytest.mark.thorough
def test_a_sweep_is_planned_without_training_and_carried_out_once(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    sweep = plan_sweep(tmp_path / "small.toml", seeds=2, jobs=1, out=tmp_path / "out", flags={"seed": 5})
    assert sweep.seeds == range(5, 7)
    assert [str(cell) for cell in sweep.cells] == ["dense", "hidden=1/4; magnitude; layerwise", "control; hidden=1/4"]
    assert len(sweep.runs) == 6
    assert not (tmp_path / "runs").exists()
    announced = []
    finished = carry_out_sweep(sweep, announced.append)
    assert {run.name for run in announced} == set(sweep.runs)
    assert [run.remaining for run in announced] == [5, 4, 3, 2, 1, 0]
    assert all(set(run.metrics) == {"accuracy"} for run in announced)
    assert finished.page.read_text(encoding="utf-8").startswith(
        "# small\n\nMeans ± standard errors over 2 seeds: 5, 6."
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary[ENTRY]["kind"] == "summary"
    assert summary["metrics"] == ["accuracy"]
    assert carry_out_sweep(sweep, announced.append) == finished
    assert len(announced) == 6
