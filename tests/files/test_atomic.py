import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from prunekit.errors import CheckpointError
from prunekit.files import atomic as files


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_bytes_and_functions_are_written_and_no_temporary_file_remains(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "a", b"one")
    files.write_atomically(str(tmp_path / "b"), lambda file: file.write(b"two"))
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == [b"one", b"two"]


def test_a_failing_writer_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    files.write_atomically(target, b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(target, fail)
    assert names(tmp_path) == ["a"]
    assert target.read_bytes() == b"old"


def test_a_full_disk_is_an_error_that_names_the_path_and_the_next_step(tmp_path: Path) -> None:
    def fill(_: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"masks: No space left on device; free some space"):
        files.write_atomically(tmp_path / "masks", fill)
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone/a: No such file or directory; create its folder first"):
        files.write_atomically(tmp_path / "gone" / "a", b"")


def test_a_folder_at_the_path_of_the_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckpointError, match="a: Is a directory"):
        files.write_atomically(tmp_path / "a", b"")
    assert names(tmp_path) == ["a"]


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_content_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(names(tmp_path)))
    files.write_atomically(tmp_path / "a", b"")
    before, after = seen
    assert before != ["a"]
    assert after == ["a"]


def test_a_writable_folder_is_created_with_its_parents_and_is_empty(tmp_path: Path) -> None:
    folder = files.make_writable_folder(tmp_path / "runs" / "a")
    assert files.make_writable_folder(folder) == folder
    assert names(folder) == []


def test_a_file_at_the_path_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot write .*runs/a: Not a directory"):
        files.make_writable_folder(tmp_path / "runs" / "a")
    with pytest.raises(CheckpointError, match=r"cannot write .*runs: File exists"):
        files.make_writable_folder(tmp_path / "runs")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="write permission"):
        files.make_writable_folder(tmp_path)


def test_a_locked_folder_is_refused_until_the_other_process_ends(tmp_path: Path) -> None:
    code = "import sys, pathlib; from prunekit.files.atomic import held_alone\n"
    code += f"with held_alone(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    # The code is the one above.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match="another process is working in"), files.held_alone(tmp_path):
            pass
        other.kill()
    with files.held_alone(tmp_path):
        pass


def test_only_our_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in (".0123456789abcdef.tmp", ".notes.tmp", "0123456789abcdef.tmp", ".0123456789abcdef.tmp.gz"):
        (tmp_path / name).write_bytes(b"")
    files.remove_temporaries(tmp_path)
    assert names(tmp_path) == [".0123456789abcdef.tmp.gz", ".notes.tmp", "0123456789abcdef.tmp"]


def test_a_lock_is_released_when_its_process_is_killed_even_if_a_fork_survives(tmp_path: Path) -> None:
    code = "import os, pathlib, time; from prunekit.files.atomic import held_alone\n"
    code += f"with held_alone(pathlib.Path({str(tmp_path)!r})):\n"
    code += "    os.fork() and print('held', flush=True); time.sleep(60)"
    # The code is the one above.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait()
        with files.held_alone(tmp_path):
            pass
        os.killpg(holder.pid, 9)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is a device or a pipe"):
        files.write_atomically(tmp_path / "pipe", b"bytes")
    assert (tmp_path / "pipe").is_fifo()
