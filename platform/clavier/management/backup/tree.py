"""The files of a home into a backup: what never changes is linked, the rest copied, everything hashed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clavier.management.backup.manifest import HOME, Entry, copy_hashed, hash_of

#: Not data: sockets, logs, the queue's alarm clocks, spooled uploads, the executors' own notes on running programs.
LEFT_OUT = frozenset({"run", "logs", "static", "queue", "uploads", "executors"})
#: Files at the top of a home that are data.
TOP_FILES = ("secret_key",)
#: Deleted by crashed processes' successors anyway, or (parts of resumable uploads) changed in place and sent again.
SHORT_LIVED = frozenset({".trash", ".incoming", ".resumable"})
#: A program's scratch space in a run folder; a new attempt makes its own.
SCRATCH = frozenset({"work", ".room"})

Progress = Callable[[int, int], None]


class Tree:
    """Collects files of one home in one backup folder; a path that is in already stays as it is."""

    def __init__(self, home: Path, folder: Path, progress: Progress) -> None:
        self.home, self.folder, self.progress = home, folder / HOME, progress
        self.files: dict[str, Entry] = {}
        self.folders: dict[str, Entry] = {}
        self.size_bytes = 0
        self.folder.mkdir(mode=0o700)

    def data_folders(self) -> list[Path]:
        """What lies at the top of a home and is data, other than runs."""
        found = [path for path in self.home.iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(path for path in found if not path.name.startswith(".") and path.name not in {*LEFT_OUT, "runs"})

    def add_top_files(self) -> None:
        """The few files at the top of a home."""
        for name in TOP_FILES:
            if (self.home / name).is_file():
                self._add_file(self.home / name, changes=True)

    def add_immutable(self, root: Path) -> None:
        """A folder whose files are only ever replaced, never changed."""
        self._add(root, changes=False, left_out=SHORT_LIVED, has_users_names=root.name == "files")

    def add_run(self, root: Path, *, is_ended: bool) -> None:
        """A run folder: a live program goes on writing to its files, so they are copied."""
        self._add_folder(root.parent)
        self._add(root, changes=not is_ended, left_out=SCRATCH, has_users_names=False)

    def drop(self, root: Path) -> None:
        """Take everything of a folder out again."""
        prefix = f"{HOME}/{root.relative_to(self.home)}/"
        for path in [path for path in self.files if path.startswith(prefix)]:
            self.size_bytes -= self.files.pop(path).size
            (self.folder.parent / path).unlink()

    def _add(self, root: Path, *, changes: bool, left_out: frozenset[str], has_users_names: bool) -> None:
        """Everything below ``root``. ``left_out``: names at its top. In a user's own folders any name is legal."""
        self._add_folder(root)
        try:
            entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.name in left_out or (entry.name.startswith(".tmp") and not has_users_names):
                continue
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                self._add(path, changes=changes, left_out=frozenset(), has_users_names=has_users_names)
            elif entry.is_file(follow_symlinks=False):  # a program may leave links and pipes; they are no data
                self._add_file(path, changes=changes)

    def _add_folder(self, path: Path) -> None:
        name = f"{HOME}/{path.relative_to(self.home)}"
        with suppress(FileNotFoundError):
            facts = path.lstat()
            (self.folder.parent / name).mkdir(mode=0o700, exist_ok=True)
            self.folders[name] = Entry(name, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)

    def _add_file(self, path: Path, *, changes: bool) -> None:
        name = f"{HOME}/{path.relative_to(self.home)}"
        if name in self.files:
            return
        target = self.folder.parent / name
        try:
            size, sha256 = self._take(path, target, changes=changes)
            facts = path.lstat()
        except FileNotFoundError:  # deleted since its folder was listed
            target.unlink(missing_ok=True)
            return
        self.files[name] = Entry(name, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, size, sha256)
        self.size_bytes += size
        self.progress(len(self.files), self.size_bytes)

    def _take(self, path: Path, target: Path, *, changes: bool) -> tuple[int, str]:
        """Link or copy one file; its size and sha256. Raises FileNotFoundError."""
        if not changes:
            with suppress(OSError):  # another file system, or one without links
                os.link(path, target, follow_symlinks=False)
                return hash_of(target)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as source, open(target, "wb") as copy:
            return copy_hashed(source, copy)
