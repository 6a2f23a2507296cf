import pytest

from prunekit.errors import CheckpointError
from prunekit.files.headers import read_json
from prunekit.runs.folder import (
    RunFolder,
    add_environment,
    check_new_run,
    check_resumable,
    create_run_folder,
    free_folder,
    mark_resumable,
    remove_leftovers,
    write_json,
)


def test_a_new_folder_is_created_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    create_run_folder(folder, force=False)
    assert folder.checkpoints.is_dir()


def test_an_existing_run_is_refused_with_the_three_ways_out(tmp_path):
    folder = RunFolder(tmp_path)
    create_run_folder(folder, force=False)
    create_run_folder(folder, force=False)  # nothing has run yet
    folder.config.write_text("")
    with pytest.raises(
        CheckpointError, match=r"already holds a run \(config.toml\); resume it \(--resume .*--force.*--out"
    ):
        create_run_folder(folder, force=False)


def test_a_foreign_file_with_a_name_of_ours_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        create_run_folder(RunFolder(tmp_path), force=False)
    assert (tmp_path / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300])
def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path, name):
    folder = RunFolder(tmp_path / name)
    for refuse in (lambda: check_resumable(folder), lambda: check_new_run(folder, force=True)):
        with pytest.raises(CheckpointError, match=r"File name too long|holds no run"):
            refuse()


def test_force_removes_the_files_of_the_run_and_no_others(tmp_path):
    folder = RunFolder(tmp_path)
    create_run_folder(folder, force=False)
    folder.config.write_text("old")
    (folder.checkpoints / "stage-000-step-00000001.safetensors").write_bytes(b"old")
    (tmp_path / "thesis.tex").write_text("precious")
    create_run_folder(folder, force=True)
    assert not folder.config.exists()
    assert list(folder.checkpoints.iterdir()) == []
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        create_run_folder(RunFolder(tmp_path / "file" / "run"), force=False)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        check_resumable(RunFolder(tmp_path))


def test_the_first_free_name_is_found(tmp_path):
    assert free_folder(tmp_path, "x") == tmp_path / "x"
    (tmp_path / "x").mkdir()
    (tmp_path / "x-2").mkdir()
    assert free_folder(tmp_path, "x") == tmp_path / "x-3"


def test_a_run_that_was_killed_early_is_overwritten_and_cannot_be_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    create_run_folder(folder, force=False)
    (folder.checkpoints / "stage-000-step-00000000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="before it could be resumed; repeat the command that started it"):
        check_resumable(folder)
    create_run_folder(folder, force=False)
    assert list(folder.checkpoints.iterdir()) == []
    folder.config.write_text("")
    mark_resumable(folder)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match="already holds a run"):
        create_run_folder(folder, force=False)


def test_half_written_files_are_removed(tmp_path):
    folder = RunFolder(tmp_path)
    create_run_folder(folder, force=False)
    for place in (folder.path, folder.checkpoints):
        (place / ".0123456789abcdef.tmp").write_bytes(b"")
    remove_leftovers(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".starting", "checkpoints"]


def test_the_environment_of_a_resumption_is_noted_beside_that_of_the_start(tmp_path):
    folder = RunFolder(tmp_path)
    write_json(folder.environment, "environment", {"seed": 3})
    add_environment(folder, {"python": "3"})
    add_environment(folder, {"python": "4"})
    resumed = [{"python": "3"}, {"python": "4"}]
    assert read_json(folder.environment, "environment", CheckpointError) == {"seed": 3, "resumed": resumed}
    folder.environment.write_text("{")
    add_environment(folder, {"python": "5"})
    assert read_json(folder.environment, "environment", CheckpointError) == {"resumed": [{"python": "5"}]}
