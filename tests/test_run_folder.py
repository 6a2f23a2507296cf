import pytest

from prunekit.errors import CheckpointError
from prunekit.run_folder import RunFolder, environment, free_folder


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.create(force=False)
    assert folder.checkpoints.is_dir()


def test_an_existing_run_is_refused_with_the_three_ways_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(force=False)
    folder.create(force=False)  # nothing was run yet
    folder.config.write_text("")
    with pytest.raises(CheckpointError, match=r"holds a run already; go on with it \(--resume .*--force.*--out"):
        folder.create(force=False)


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


def test_the_environment_names_versions_and_hardware():
    facts = environment(3, "cpu")
    assert facts["seed"] == 3
    assert facts["hardware"] == "cpu"
    assert facts["versions"]["torch"]
