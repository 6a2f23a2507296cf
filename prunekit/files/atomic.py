"""Writing files so that a reader, or a crash, never meets half of one.

Whatever is written goes to a temporary file in the same folder, is synced, and is then renamed. This
module must not know what the bytes mean.
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
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_NEXT_STEP = {
    errno.EACCES: "give yourself write permission there or choose another folder",
    errno.EPERM: "give yourself write permission there or choose another folder",
    errno.EROFS: "choose a folder on a file system that can be written",
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "choose a path whose parents are all folders",
    errno.EEXIST: "choose a path where no file stands in the way",
    errno.EISDIR: "choose a path that is no folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another file system",
}
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def refusal(path: Path, error: OSError) -> CheckpointError:
    """Return the error of a path that the file system does not let us write, with the next step."""
    next_step = _NEXT_STEP.get(error.errno or 0, "choose another folder")
    return CheckpointError(f"cannot write {path}: {error.strerror or error}; {next_step}")


def write_atomically(
    path: str | os.PathLike[str],
    data: bytes | Callable[[BinaryIO], object],
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a file whole or not at all; what stood there before stays until the new file is complete.

    Args:
        path: the file to write; its folder must exist.
        data: the bytes, or a function that writes them into the open file it is given.
        check: is given the complete file, under another name, before it takes its place; raises where it is no good.

    Raises:
        CheckpointError: when the file system refuses: no permission, no space, no such folder; or a device or pipe is
            there, which a file would replace.
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
    """Remove what a process that was killed while it wrote left behind; nobody else may be writing in the folder.

    Raises:
        CheckpointError: when one cannot be removed.
    """
    try:
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                remove_whole(path)
    except OSError as error:
        raise refusal(folder, error) from error


def sync_file(path: Path) -> None:
    """Make what was appended to a file survive a power cut.

    Raises:
        CheckpointError: when the file system cannot take it.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise refusal(path, error) from error


def temporary_in(folder: Path) -> Path:
    """Return a new name in a folder for what is being written, or removed."""
    return folder / f".{secrets.token_hex(8)}.tmp"


def rename_folder(temporary: Path, path: Path) -> None:
    """Give a folder that is complete its name, in the same folder; what stood there before goes.

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
    """Remove a file, or a folder in such a way that nobody meets half of it; what is not there is no error."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    temporary = temporary_in(path.parent)
    path.rename(temporary)
    shutil.rmtree(temporary)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder, with its parents, and prove that a file can be written there, before hours are spent.

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
    """Keep other processes that ask for the same folder out of it; the system lets go when this one ends, however.

    Raises:
        CheckpointError: when another process holds it.
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
            # Not flock: a data worker that outlives its killed run by seconds would hold on to it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                raise CheckpointError(
                    f"another process works in {folder}; wait for it, or name another folder"
                ) from error
            # Some network file systems have no locks; then there is nothing to wait for.
            if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise refusal(path, error) from error
        yield
