"""``prunekit sweep`` as a command: its output, its files and its refusals."""

import json

import pytest

from prunekit.cli import main

pytestmark = pytest.mark.system  # whole runs in processes of their own

RECIPE = """
[task]
name = "prunekit.testing:ToyTask"
[training]
budget = "6 steps"
retraining = "3 steps"
[sweep]
structures = ["hidden=1/4"]
criteria = ["magnitude", "random"]
metrics = ["accuracy"]
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_a_sweep_prints_and_writes_both_tables_and_repeating_it_gives_the_same_bytes(tmp_path, recipe, capsys):
    assert main(["sweep", "small.toml", "--seeds", "2", "--seed", "5"]) == 0
    output = capsys.readouterr().out
    for words in ("4 rows, 2 seeds: 8 runs", "seed5-dense-", "0 remaining", "magnitude - random", "2 seeds"):
        assert words in output
    folder = tmp_path / "sweeps" / "small"
    first = {name: (folder / name).read_bytes() for name in ("summary.json", "summary.md")}
    assert json.loads(first["summary.json"])["seeds"] == [5, 6]
    assert json.loads((folder / "environment.json").read_text())["seconds_of_runs"] > 0
    assert len(list((tmp_path / "sweeps" / "runs").glob("seed*"))) == 8
    assert main(["sweep", "small.toml", "--seeds", "2", "--seed", "5"]) == 0
    assert "remaining" not in capsys.readouterr().out
    assert {name: (folder / name).read_bytes() for name in first} == first
    recipe.write_text(RECIPE.replace('"accuracy"', '"acuracy"'))  # all runs are complete
    assert main(["sweep", "small.toml", "--seeds", "2", "--seed", "5"]) == 2
    assert "(did you mean 'accuracy'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "recipe 'none.toml' cannot be read"),
        (["small.toml", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["small.toml", "-o", "task.nose=1"], "did you mean 'noise'"),
        (["small.toml", "--out", "small.toml/x"], "cannot write small.toml/x"),
        (["small.toml", "--data", "faces"], "has no option 'data'"),
    ],
)
def test_user_errors_are_one_line_before_any_run(arguments, message, capsys, tmp_path):
    assert main(["sweep", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweeps" / "runs").exists()


def test_a_metric_that_the_task_does_not_report_is_refused_after_the_first_run(recipe, capsys):
    recipe.write_text(RECIPE.replace('"accuracy"', '"acuracy"'))
    assert main(["sweep", "small.toml", "--seeds", "1", "--jobs", "1"]) == 2
    assert "'acuracy', which the task does not report (did you mean 'accuracy'?)" in capsys.readouterr().err
