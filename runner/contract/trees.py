"""Folder trees that programs made, walked and removed whatever their depth.

Never more than two descriptors are open, no path is longer than one name, nothing recurses: a program can nest folders
thousands deep, and give the deepest file a path that no call of the system takes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a tree. ``folder``: a descriptor of where it lies, valid until the next entry is asked for.

    ``above``: the names of the folders between the root and it. ``is_left``: a folder whose contents were all visited.
    """

    name: str
    folder: int
    is_folder: bool
    above: list[str]
    is_left: bool = False

    @property
    def depth(self) -> int:
        """1 for what lies in the root itself."""
        return len(self.above) + 1

    @property
    def path(self) -> str:
        """Relative to the root; it may be too long for any call."""
        return "/".join((*self.above, self.name))

    def status(self) -> os.stat_result:
        """Of the entry itself, were it a link. Raises FileNotFoundError when it has gone meanwhile."""
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def is_regular(self) -> bool:
        """A file, and nothing else that files can be."""
        return not self.is_folder and stat.S_ISREG(self.status().st_mode)


def walk(root: Path | str, *, deepest: int | None = None) -> Iterator[Entry]:
    """Every entry beneath a folder, by name, a folder before what is in it. Links are not followed.

    No folder, no entry; what goes meanwhile is left out. ``deepest``: folders of this depth are not entered.
    Raises OSError.
    """
    return (entry for entry in _visit(root, None, deepest) if not entry.is_left)


def remove_tree(root: Path | str, *, dir_fd: int | None = None) -> None:
    """Remove a folder with all that is in it, or whatever else lies there; nothing is no error. Raises OSError."""
    for entry in _visit(root, dir_fd, None):
        if entry.is_left:
            os.rmdir(entry.name, dir_fd=entry.folder)
        elif not entry.is_folder:
            os.unlink(entry.name, dir_fd=entry.folder)
    try:
        if stat.S_ISDIR(os.stat(root, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            os.rmdir(root, dir_fd=dir_fd)
        else:
            os.unlink(root, dir_fd=dir_fd)
    except FileNotFoundError:
        return


def measure(root: Path | str) -> tuple[int, int]:
    """Bytes of the files in a tree, holes left out, and how many files and folders there are.

    A file that has names outside of the tree too is left to who keeps it there. Raises OSError.
    """
    num_bytes = num_entries = 0
    #: Files of several names: how many of these were seen here.
    linked: dict[tuple[int, int], int] = {}
    for entry in walk(root):
        num_entries += 1
        if entry.is_folder:
            continue
        with suppress(FileNotFoundError):
            status = entry.status()
            key = (status.st_dev, status.st_ino)
            if status.st_nlink > 1:
                linked[key] = linked.get(key, 0) + 1
            if linked.get(key, 1) == status.st_nlink:
                num_bytes += min(status.st_size, status.st_blocks * 512)
    return num_bytes, num_entries


def _visit(root: Path | str, dir_fd: int | None, deepest: int | None) -> Iterator[Entry]:
    """Entries as they are come upon, and folders once more when they are left."""
    folder = _open(root, dir_fd)
    if folder is None:
        return
    above: list[str] = []
    #: Of each folder from the root to where we are: what it is, and the folders in it that are still to be entered.
    levels: list[tuple[tuple[int, int], list[str]]] = []
    try:
        levels.append((_identity(folder), (yield from _entries(folder, above))))
        while True:
            to_enter = levels[-1][1]
            if to_enter and (deepest is None or len(levels) <= deepest):
                deeper = _open(to_enter[-1], folder)
                name = to_enter.pop()
                if deeper is not None:
                    os.close(folder)
                    folder = deeper
                    above.append(name)
                    levels.append((_identity(folder), (yield from _entries(folder, above))))
                continue
            levels.pop()
            if not levels:
                return
            higher = os.open("..", _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = higher
            if _identity(folder) != levels[-1][0]:
                raise OSError(errno.ESTALE, "A folder was moved while its tree was walked", str(root))
            name = above.pop()
            yield Entry(name, folder, True, above, is_left=True)
    finally:
        os.close(folder)


def _entries(folder: int, above: list[str]) -> Generator[Entry, None, list[str]]:
    """The entries of one folder by name; returned: the names of folders, last first."""
    with os.scandir(folder) as found:
        kinds = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_folder in kinds:
        yield Entry(name, folder, is_folder, above)
    return [name for name, is_folder in reversed(kinds) if is_folder]


def _open(name: Path | str, dir_fd: int | None) -> int | None:
    """A descriptor of a folder; None when there is none, or none any more."""
    try:
        return os.open(name, _FOLDER, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino
