"""The control sub-folder of one attempt: how the local executor and its wrapper talk, across any crash.

``launch.json`` is the intent and comes first. ``lock`` is held (flock) as long as the wrapper or its keeper lives.
``started.json`` is durable before the program exists. ``stop.json`` asks for the end, ``result.json`` is the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runner.contract.folder import WORK, fsync_folder

LAUNCH = "launch.json"
LOCK = "lock"
STARTED = "started.json"
STOP = "stop.json"
RESULT = "result.json"
WRAPPER_LOG = "wrapper.log"
#: Folder beside the attempts' own: a file for each name under which nothing may start any more.
NEVER = ".never"
#: No starter that was held up comes back after so long.
_NEVER_FOR_S = 7 * 24 * 3600.0

#: private_namespaces: own user and a private view of files and processes; own_user: own user only;
#: platform_user: the program runs as the platform itself, so it could read whatever the platform can.
Isolation = Literal["private_namespaces", "own_user", "platform_user"]


@dataclass(frozen=True, slots=True)
class Bind:
    """A path the program needs; ``writable`` False makes it read-only in a private view."""

    path: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """All that the wrapper needs to know, decided by the executor. ``user_id`` None: the platform's own user.

    ``start_in``: the program's first folder, relative to the run folder. ``has_network`` False: in private namespaces
    only a loopback of its own.
    """

    attempt: str
    spec_digest: str
    run_folder: str
    rank: int
    argv: tuple[str, ...]
    environment: dict[str, str]
    isolation: Isolation
    user_id: int | None
    binds: tuple[Bind, ...]
    hidden: tuple[str, ...]
    memory_mib: int
    time_limit_s: float | None
    stop_grace_s: float
    max_processes: int
    max_file_mib: int
    max_log_mib: int
    labels: dict[str, str]
    start_in: str = WORK
    has_network: bool = True

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Order:
        """The order of a stored dict. Raises TypeError on unknown or missing keys."""
        data = dict(value)
        data["argv"] = tuple(data["argv"])
        data["binds"] = tuple(Bind(**bind) for bind in data["binds"])
        data["hidden"] = tuple(data["hidden"])
        return cls(**data)


def read_json(path: Path) -> dict[str, Any] | None:
    """The dict in a file; None when there is no such file or it is not a JSON object. Never follows a symlink."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, encoding="utf-8") as stream:
        try:
            value = json.load(stream)
        except (ValueError, OSError):
            return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a private JSON file whole or not at all, also when several threads write the same one. Raises OSError."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(value, stream, ensure_ascii=False, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def forbid_start(control_folder: Path, name: str) -> None:
    """Remember durably, for a week, that nothing may start under a name. Raises OSError.

    Forbid first, then look for the intent; a starter writes its intent first, then asks ``is_start_forbidden``. So
    whoever comes second sees the other.
    """
    folder = control_folder / NEVER
    folder.mkdir(mode=0o700, exist_ok=True)
    oldest = time.time() - _NEVER_FOR_S
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.stat(follow_symlinks=False).st_mtime < oldest:
                os.unlink(entry.path)
    (folder / name).touch(mode=0o600)
    fsync_folder(folder)
    fsync_folder(control_folder)


def is_start_forbidden(control_folder: Path, name: str) -> bool:
    """Whether a stop came before the start of this name."""
    return (control_folder / NEVER / name).exists()


def take_lock(folder: Path, patience_s: float) -> int | None:
    """The descriptor that holds the attempt's lock, or None when the program was already started or has ended.

    It waits, because ``quiet`` and ``stop`` hold the lock for moments, and because a wrapper that dies before it has
    started the program leaves its place to the next.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_s
    while not _try_lock(descriptor, fcntl.LOCK_EX):
        if _is_over_or_started(folder) or time.monotonic() > deadline:
            os.close(descriptor)
            return None
        time.sleep(0.01)
    if _is_over_or_started(folder):
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def quiet(folder: Path, *, exclusive: bool = False) -> Iterator[bool]:
    """True when no wrapper holds the lock; then none can take it inside the block. Raises FileNotFoundError."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield _try_lock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def holds(folder: Path, descriptor: int) -> bool:
    """Whether the lock file at this path is still the one behind the descriptor."""
    try:
        return os.path.samestat(os.stat(folder / LOCK), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def boot_id() -> str:
    """Changes with each boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_over_or_started(folder: Path) -> bool:
    return (folder / STARTED).exists() or (folder / RESULT).exists()
