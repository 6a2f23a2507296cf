"""Atomic file writes: neither a reader nor a crash ever sees half a file.

The data goes to a temporary file in the same folder, which is synced and then renamed. This module must not know what
the bytes mean.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from prunekit.errors import CheckpointError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_NEXT_STEP = {
    errno.EACCES: "give yourself write permission there or choose another folder",
    errno.EPERM: "give yourself write permission there or choose another folder",
    errno.EROFS: "choose a folder on a file system that can be written",
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "choose a path whose parents are all folders",
    errno.EEXIST: "choose a path that no file blocks",
    errno.EISDIR: "choose a path that is not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another file system",
}
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def refusal(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a path that the file system refuses to write, with the next step."""
    next_step = _NEXT_STEP.get(error.errno or 0, "choose another folder")
    return CheckpointError(f"cannot write {path}: {error.strerror or error}; {next_step}")


def write_atomically(
    path: str | os.PathLike[str],
    data: bytes | Callable[[BinaryIO], object],
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a file whole or not at all; an existing file is kept until the new one is complete.

        write_atomically(folder / "plan.json", text.encode())

    Args:
        path: the file to write; its folder must exist.
        data: the bytes, or a function that writes them to the open file that it is passed.
        check: called with the path of the complete temporary file before the rename; raises to reject the file.

    Raises:
        CheckpointError: the file system refuses (no permission, no space, no such folder), or the path is a device or
            a pipe, which the rename would replace.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise CheckpointError(f"cannot write {path}: it is a device or a pipe; choose the path of a file")
    temporary = temporary_in(path.parent)
    try:
        try:
            with temporary.open("xb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise refusal(path, error) from error


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed processes; no other process may be writing in the folder.

    Raises:
        CheckpointError: when a temporary file cannot be removed.
    """
    try:
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                remove_whole(path)
    except OSError as error:
        raise refusal(folder, error) from error


def sync_file(path: Path) -> None:
    """Sync a file to disk, so that appended data survives a power cut.

    Raises:
        CheckpointError: when the file system refuses.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise refusal(path, error) from error


def temporary_in(folder: Path) -> Path:
    """Return a new temporary path in a folder, for an entry that is being written or removed."""
    return folder / f".{secrets.token_hex(8)}.tmp"


def rename_folder(temporary: Path, path: Path) -> None:
    """Rename a complete temporary folder to its final name in the same parent, replacing an existing entry.

    Raises:
        CheckpointError: when the file system refuses.
    """
    try:
        _sync_folder(temporary)
        remove_whole(path)
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise refusal(path, error) from error


def remove_whole(path: Path) -> None:
    """Remove a file or folder, if it exists; a folder is renamed first, so that no reader sees half of it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    temporary = temporary_in(path.parent)
    path.rename(temporary)
    shutil.rmtree(temporary)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power cut; a no-op where folders cannot be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents, and check that it is writable before a long computation begins.

    Returns:
        The folder.

    Raises:
        CheckpointError: when it cannot be created or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_in(folder)
        try:
            probe.write_bytes(b"\0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(folder, error) from error
    return folder


@contextlib.contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes.

    The operating system releases the lock when this process exits, for whatever reason.

    Raises:
        CheckpointError: when another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise refusal(path, error) from error
    with file:
        try:
            # Not flock: a data worker that outlives its killed run by seconds would keep the lock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                raise CheckpointError(
                    f"another process is working in {folder}; wait for it, or choose another folder"
                ) from error
            # Some network file systems do not support locks; continue without one.
            if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise refusal(path, error) from error
        yield
