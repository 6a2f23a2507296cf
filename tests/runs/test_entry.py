"""A run as one call, without the command line."""

import pytest

from prunekit.errors import CheckpointError
from prunekit.runs.entry import carry_out, preview, resumed_config, to_recipe
from prunekit.runs.plan_counts import kept_by_stage
from prunekit.runs.recipes import build_config

RECIPE = {
    "task": {"name": "prunekit.testing:ToyTask"},
    "criterion": {"name": "magnitude"},
    "structure": "hidden=1/4",
    "training": {"budget": "4 steps", "retraining": "2 steps"},
    "seed": 3,
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_without_a_folder_gets_a_new_one_that_can_be_resumed(in_an_empty_folder):
    finished = carry_out(build_config(RECIPE))
    assert finished.folder.name == "ToyTask-magnitude-seed3"
    assert [stage.name for stage in finished.stages] == ["dense", "hidden"]
    config = resumed_config(finished.folder)
    assert (config.seed, config.structure) == (3, "hidden=1/4")
    assert carry_out(config, resume=finished.folder).stages == finished.stages
    assert [path.name for path in (in_an_empty_folder / "runs").iterdir()] == ["ToyTask-magnitude-seed3"]


def test_an_existing_run_is_overwritten_only_by_force():
    config = build_config({**RECIPE, "out": "run"})
    carry_out(config)
    with pytest.raises(CheckpointError, match="already holds a run"):
        carry_out(config)
    assert len(carry_out(config, force=True).stages) == 2


def test_a_folder_without_a_run_cannot_be_resumed(in_an_empty_folder):
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        resumed_config(in_an_empty_folder)


def test_the_recipe_of_a_configuration_has_absolute_paths(in_an_empty_folder):
    text = to_recipe(build_config({**RECIPE, "out": "run"}))
    assert f'out = "{in_an_empty_folder}/run"' in text
    assert not list(in_an_empty_folder.iterdir())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"structure": "hidden=1/3 b=1/2"},
        {"pattern": "units"},
        {"structure": "conv*=1/2 hidden=1/2", "pattern": "channels"},
    ],
)
def test_the_counts_of_a_plan_are_those_of_its_run(more):
    config = build_config({**RECIPE, "out": "run", **more})
    counts = kept_by_stage(preview(config))
    assert counts == [sum(stage.kept.values()) for stage in carry_out(config).stages]
