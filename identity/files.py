"""Files and folders that only their owner may read, whatever the umask says; and tightening those that are looser."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, each 0700; one that is there stays as it is. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return  # Another process made it between the two lines.
    folder.chmod(FOLDER_MODE)


def make_file(path: Path) -> None:
    """Make `path` as an empty file, 0600, unless it is there. Raises OSError."""
    try:
        os.close(open_new(path))
    except FileExistsError:
        return


def open_new(path: Path) -> int:
    """The descriptor of a new file, 0600, open for writing. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)
    return descriptor


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` outlive a power cut, as `fsync` does for what a file holds. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tighten(paths: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Take away what others may do to those of `paths` that exist and are ours. Returns what was changed, and what others may still read.

    What is not ours to change (a mounted secret, a folder that all share) stays as it is.
    """
    done: list[str] = []
    left: list[str] = []
    for path in paths:
        with contextlib.suppress(OSError):  # Not there, or not ours to see.
            found = path.lstat()
            is_folder, is_file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
            if not found.st_mode & 0o077 or not (is_folder or is_file):
                continue
            shown = f"{path.absolute()} ({stat.S_IMODE(found.st_mode):04o})"
            try:
                if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:
                    raise PermissionError
                path.chmod(FOLDER_MODE if is_folder else FILE_MODE)
            except OSError:
                left.append(shown)
            else:
                done.append(shown)
    return done, left
