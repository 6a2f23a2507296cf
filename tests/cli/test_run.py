"""``prunekit run`` as a command: its folder, its refusals and its output."""

import pytest

from prunekit.cli import main

TOY = ["run", "--task", "prunekit.testing:ToyTask", "--criterion", "magnitude", "--structure", "hidden=1/4"]
SHORT = ["-o", "training.budget=4 steps", "-o", "training.retraining=2 steps"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_prints_its_table_and_where_the_files_are(capsys):
    assert main([*TOY, *SHORT, "--out", "a"]) == 0
    output = capsys.readouterr()
    for words in ("dense", "hidden", "0.25", "712", "0.4518", "a/masks.safetensors", "a/config.toml"):
        assert words in output.out
    assert "[2/2] hidden" in output.err


def test_without_out_each_run_gets_a_new_folder(in_an_empty_folder):
    assert main([*TOY, *SHORT]) == 0
    assert main([*TOY, *SHORT]) == 0
    names = sorted(path.name for path in (in_an_empty_folder / "runs").iterdir())
    assert names == ["ToyTask-magnitude-seed0", "ToyTask-magnitude-seed0-2"]


def test_an_existing_run_is_refused_unless_force_overwrites_it(capsys):
    assert main([*TOY, *SHORT, "--out", "a"]) == 0
    assert main([*TOY, *SHORT, "--out", "a"]) == 2
    assert "--resume a" in capsys.readouterr().err
    assert main([*TOY, *SHORT, "--out", "a", "--force"]) == 0


def test_the_config_of_a_run_starts_the_same_run(in_an_empty_folder):
    assert main([*TOY, *SHORT, "--seed", "5", "-o", "schedule.scope=unit", "--out", "a"]) == 0
    assert main(["run", "a/config.toml", "--out", "b"]) == 0
    assert (in_an_empty_folder / "a/model.safetensors").read_bytes() == (
        in_an_empty_folder / "b/model.safetensors"
    ).read_bytes()


@pytest.mark.thorough
@pytest.mark.parametrize("more", [[], ["-o", "training.decay=linear", "--keep", "3"], ["--distribution", "uniform"]])
def test_the_config_of_a_run_works_from_any_directory(in_an_empty_folder, monkeypatch, more):
    (in_an_empty_folder / "mine.py").write_text(
        "from prunekit.testing.toy_task import ToyTask\nclass Mine(ToyTask): pass\n"
    )
    assert main([*TOY, *SHORT, "--out", "given"]) == 0
    shape = ["--density", "0.1"] if "--distribution" in more else ["--structure", "hidden=1/8"]
    given = ["--masks", "given/masks.safetensors", "--weights", "given/model.safetensors"]
    command = ["run", "--task", "mine.py:Mine", "--criterion", "magnitude", "--schedule", "one-shot"]
    assert main([*command, *shape, *SHORT, *given, *more, "--out", "a"]) == 0
    (in_an_empty_folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["run", "../a/config.toml", "--out", "../b"]) == 0
    folders = [in_an_empty_folder / name for name in "ab"]
    for name in ("model.safetensors", "masks.safetensors", "plan.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    configs = [(folder / "config.toml").read_text().splitlines() for folder in folders]
    assert [line for line in configs[0] if line not in configs[1]] == [f'out = "{in_an_empty_folder}/a"']
    assert main(["run", "--resume", "../a"]) == 0


def test_keep_sets_the_number_of_checkpoints(in_an_empty_folder):
    often = ["-o", "training.checkpoint_every=1", "--keep", "4"]
    assert main([*TOY, *SHORT, *often, "--out", "a"]) == 0
    assert len(list((in_an_empty_folder / "a/checkpoints").iterdir())) == 4


def test_resume_takes_no_other_options(capsys):
    assert main([*TOY, *SHORT, "--out", "a"]) == 0
    assert main(["run", "--resume", "a"]) == 0
    assert "resuming at the end: all stages are finished" in capsys.readouterr().err
    assert main(["run", "--resume", "a", "--seed", "3"]) == 2
    assert "leave out: --seed" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(in_an_empty_folder, capsys, where):
    (in_an_empty_folder / "file").write_text("")
    assert main([*TOY, *SHORT, "--out", where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write")
    assert "[1/2]" not in error


def test_a_wrong_device_creates_no_folder(in_an_empty_folder, capsys):
    assert main([*TOY, *SHORT, "--device", "gpu", "--out", "a"]) == 2
    assert "device 'gpu' is not available here" in capsys.readouterr().err
    assert not (in_an_empty_folder / "a").exists()


def test_data_workers_change_nothing(in_an_empty_folder):
    assert main([*TOY, *SHORT, "--out", "a"]) == 0
    assert main([*TOY, *SHORT, "-o", "training.workers=1", "--out", "b"]) == 0
    assert (in_an_empty_folder / "a/model.safetensors").read_bytes() == (
        in_an_empty_folder / "b/model.safetensors"
    ).read_bytes()


def test_the_recipe_that_a_run_prints_starts_the_same_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [*TOY[1:], "-o", "training.budget=3 steps", "-o", "training.retraining=2 steps", "--seed", "4"]
    assert main(["run", *options, "--config"]) == 0
    text = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    assert main(["run", *options, "--out", "first"]) == 0
    assert main(["run", "recipe.toml", "--out", "second"]) == 0
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["run", "recipe.toml", "--out", "first", "--config"]) == 0
    assert capsys.readouterr().out == (tmp_path / "first/config.toml").read_text(encoding="utf-8")
