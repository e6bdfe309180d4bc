"""Prepare a run folder for an attempt: who owns what in it, with no trust in what an earlier attempt left there."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from runner.contract import folder as names


def prepare(path: str, user_id: int | None, rank: int = 0) -> int:
    """Give the program its own folders and ``metrics.jsonl``; return the descriptor of the platform's log of a rank.

    ``user_id`` None: all stays with the platform's user. Raises OSError, NotADirectoryError for a folder that is not.
    """
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if user_id is not None:
            os.fchown(root, 0, user_id)
            os.fchmod(root, 0o750)
            _let_read_spec(root, user_id)
        for name in names.PROGRAM_FOLDERS:
            os.close(_own_folder(root, name, user_id))
        work = _own_folder(root, names.WORK, user_id)
        os.close(_own_folder(work, "tmp", user_id))
        _forget(work, os.path.basename(names.READY))
        os.close(work)
        metrics = _own_file(root, names.METRICS)
        if user_id is not None:
            os.fchown(metrics, user_id, user_id)
            os.fchmod(metrics, 0o644)
        os.close(metrics)
        return _own_file(root, names.log_name(rank))
    finally:
        os.close(root)


def lend(path: str, user_id: int) -> None:
    """Give the top of a writable mount to the program's user. Raises OSError, also for a symlink."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fchown(descriptor, user_id, user_id)
    finally:
        os.close(descriptor)


def _own_folder(parent: int, name: str, user_id: int | None) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    if user_id is not None:
        os.fchown(descriptor, user_id, user_id)
    return descriptor


def _own_file(root: int, name: str) -> int:
    """A regular file with one name, opened to append; anything else that sits under the name is taken away."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, 0o640, dir_fd=root)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a symlink, a pipe that nobody reads
            raise
    os.unlink(name, dir_fd=root)
    return os.open(name, flags | os.O_EXCL, 0o640, dir_fd=root)


def _let_read_spec(root: int, user_id: int) -> None:
    try:
        spec = os.open(names.SPEC, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except FileNotFoundError:
        return
    try:
        if stat.S_ISREG(os.fstat(spec).st_mode):
            os.fchown(spec, 0, user_id)
            os.fchmod(spec, 0o640)
    finally:
        os.close(spec)


def _forget(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
