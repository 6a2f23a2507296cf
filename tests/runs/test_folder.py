import json

import pytest

from prunekit.errors import CheckpointError
from prunekit.runs.folder import RunFolder, free_folder


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.create(force=False)
    assert folder.checkpoints.is_dir()


def test_an_existing_run_is_refused_with_the_three_ways_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(force=False)
    folder.create(force=False)  # nothing was run yet
    folder.config.write_text("")
    with pytest.raises(
        CheckpointError, match=r"holds a run already \(config.toml\); go on with it \(--resume .*--force.*--out"
    ):
        folder.create(force=False)


def test_a_file_of_somebody_else_under_a_name_of_ours_is_not_written_over(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        RunFolder(tmp_path).create(force=False)
    assert (tmp_path / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300])
def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path, name):
    for refuse in (RunFolder(tmp_path / name).check_resumable, lambda: RunFolder(tmp_path / name).check(force=True)):
        with pytest.raises(CheckpointError, match=r"File name too long|holds no run"):
            refuse()


def test_force_removes_the_files_of_the_run_and_no_others(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(force=False)
    folder.config.write_text("old")
    (folder.checkpoints / "stage-000-step-00000001.safetensors").write_bytes(b"old")
    (tmp_path / "thesis.tex").write_text("precious")
    folder.create(force=True)
    assert not folder.config.exists()
    assert list(folder.checkpoints.iterdir()) == []
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_lost_plan_is_no_reason_not_to_go_on(tmp_path):
    folder = RunFolder(tmp_path)
    folder.check_plan({"stages": ()})
    folder.write_json(folder.plan, {"stages": ()})
    folder.check_plan({"stages": ()})
    with pytest.raises(CheckpointError, match="other stages"):
        folder.check_plan({"stages": (1,)})


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        RunFolder(tmp_path / "file" / "run").create(force=False)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        RunFolder(tmp_path).check_resumable()


def test_a_free_name_is_found(tmp_path):
    assert free_folder(tmp_path, "x") == tmp_path / "x"
    (tmp_path / "x").mkdir()
    (tmp_path / "x-2").mkdir()
    assert free_folder(tmp_path, "x") == tmp_path / "x-3"


def test_a_run_that_was_killed_before_it_began_is_written_over_and_cannot_be_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(force=False)
    (folder.checkpoints / "stage-000-step-00000000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="stopped before it had begun; give the command that started it again"):
        folder.check_resumable()
    folder.create(force=False)
    assert list(folder.checkpoints.iterdir()) == []
    folder.config.write_text("")
    folder.begun()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match="holds a run already"):
        folder.create(force=False)


def test_what_is_half_written_is_tidied_away(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(force=False)
    for place in (folder.path, folder.checkpoints):
        (place / ".0123456789abcdef.tmp").write_bytes(b"")
    folder.tidy()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".starting", "checkpoints"]


def test_where_a_run_goes_on_is_noted_beside_where_it_began(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json(folder.environment, {"seed": 3})
    folder.add_environment({"python": "3"})
    folder.add_environment({"python": "4"})
    assert json.loads(folder.environment.read_text()) == {"seed": 3, "resumed": [{"python": "3"}, {"python": "4"}]}
    folder.environment.write_text("{")
    folder.add_environment({"python": "5"})
    assert json.loads(folder.environment.read_text()) == {"resumed": [{"python": "5"}]}
