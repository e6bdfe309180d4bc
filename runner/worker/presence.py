"""Proof that a process lives: a file which it keeps locked. The kernel tells it across containers of one machine."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

logger = logging.getLogger(__name__)


class Presence:
    """A process's own file. ``holder``: the name under which the process holds leases."""

    def __init__(self, folder: Path) -> None:
        token = uuid4().hex
        self.holder = f"{socket.gethostname()[:50]}:{os.getpid()}:{token}"
        self._path = folder / token
        self._descriptor: int | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # It appears locked under its name, so a file there that nobody keeps locked is a dead one's.
            new = folder / f".{token}"
            self._descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            new.rename(self._path)
        except OSError as error:  # a full disk: whoever takes over has to wait for the end of the lease
            logger.warning("nobody will be able to tell whether this process lives: %s", error)

    def close(self) -> None:
        """The process leaves by itself."""
        with suppress(OSError):
            self._path.unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_dead(folder: Path, holder: str) -> bool:
    """Whether a holder was on this machine and has died; False also where that can not be told."""
    return _is_unlocked(folder / holder.rpartition(":")[2])


def remove_dead(folder: Path) -> None:
    """Take away what killed processes left."""
    for path in folder.glob("[!.]*"):
        if _is_unlocked(path):
            path.unlink(missing_ok=True)


def _is_unlocked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
