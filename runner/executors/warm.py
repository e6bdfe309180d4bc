"""Warm starts, the executor's side: a zygote that has imported what programs import is asked, made, and let go.

Nothing here is promised: whoever asks looks into the control sub-folder afterwards and starts cold where nothing is
decided. The attempt's lock sees to it that the program is started at most once, whoever comes late.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from runner.contract import folder as names
from runner.executors import control
from runner.executors.base import Launch
from runner.executors.launching import REPOSITORY, interpreter_folders

FOLDER = ".warm"
SOCKET = "zygote.sock"
LOCK = "lock"
LOG = "zygote.log"
#: Says for which key no zygote shall be made for a while, and why.
MARK = "mark.json"
HOME = "home"
#: A module below ``runner.programs`` with a function ``preload``.
PRELOAD = "runner.programs.preload"
#: What differs from run to run; all else must be the same in the zygote and in what it becomes.
PER_RUN = ("HOME", "TMPDIR", "OMP_NUM_THREADS")
#: What only the zygote has: a library that comes with pandas would start a thread.
ONLY_ZYGOTE = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
#: Programs whose start is mostly imports. Servers live long, and transfers import little.
_WARM = ("runner.programs.train.", "runner.programs.evaluate.", "runner.programs.models.export_model")
_CODE = ("contract", "executors", "programs")
ZYGOTE = "runner.executors.zygote"
TAKEN = b"taken"
_UNFIT_FOR_S = 600.0
_ANSWER_S = 5.0
_START_PATIENCE_S = 60.0


class Zygotes:
    """The zygote of one control folder: asked, made where there is none, ended. At most one lives at a time."""

    def __init__(self, control_folder: Path, python: str, *, idle_s: float, preload: str = PRELOAD) -> None:
        """``idle_s``: it ends so long after its last order."""
        self._folder = control_folder / FOLDER
        self._python = python
        self._idle_s = idle_s
        self._preload = preload

    def ask(self, attempt: Path, environment: Mapping[str, str]) -> bool:
        """Have the zygote start the wrapper of an attempt's control sub-folder, and wait until that is decided.

        False where there is none, or it was made for something else and ends.
        """
        try:
            return self._ask(self._key(environment), attempt)
        except OSError:
            return False

    def make(self, environment: Mapping[str, str]) -> None:
        """Start a zygote for the launches to come, unless one is being made or none can be made here."""
        with suppress(OSError):
            key = self._key(environment)
            known = control.read_json(self._folder / MARK)
            if known is None or known["key"] != key or not 0 <= known["until"] - time.time() <= _UNFIT_FOR_S:
                self._make(key, environment)

    def end(self) -> None:
        """Let the zygote go; what it has started goes on."""
        with suppress(OSError), _connected(self._folder) as connection:
            connection.sendall(b"end")

    def _key(self, environment: Mapping[str, str]) -> str:
        return fingerprint(self._python, shared(environment), self._preload)

    def _ask(self, key: str, attempt: Path) -> bool:
        """Whether a zygote took the order. Raises OSError."""
        with ExitStack() as stack:
            connection = stack.enter_context(_connected(self._folder))
            ends = os.pipe()
            reader, writer = stack.enter_context(open(ends[0], "rb")), stack.enter_context(open(ends[1], "wb"))
            words = stack.enter_context(open(attempt / control.WRAPPER_LOG, "ab"))
            place = os.open(attempt, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, place)
            socket.send_fds(connection, [key.encode()], [place, writer.fileno(), words.fileno()])
            if connection.recv(16) != TAKEN:
                return False
            writer.close()
            select.select([reader], [], [], _START_PATIENCE_S)
            return True

    def _make(self, key: str, environment: Mapping[str, str]) -> None:
        """Leave a mark, so that others wait for what is being made, and start it. Raises OSError."""
        home = self._folder / HOME
        (home / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
        control.write_json(self._folder / MARK, mark(key, "being made"))
        own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "OMP_NUM_THREADS": "1", **ONLY_ZYGOTE}
        with open(self._folder / LOG, "wb") as log:
            subprocess.Popen(
                [self._python, "-m", ZYGOTE, str(self._folder), key, self._preload, f"{self._idle_s:g}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                env={**shared(environment), **own},
                start_new_session=True,
            ).wait()


def can_be_warm(launch: Launch) -> bool:
    """Whether a launch may be a fork: a program of ours, without devices, network, gang or variables of its own.

    A run folder that was used before starts cold, so that whatever is wrong with a zygote follows no run.
    """
    spec = launch.spec
    return (
        spec.program is not None
        and spec.program.startswith(_WARM)
        and not (launch.gpus or launch.gang or spec.needs_network or spec.environment)
        and not (launch.run_folder / names.log_name(launch.rank)).exists()
    )


def shared(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of a program's environment that libraries may read while they are imported."""
    return {name: value for name, value in environment.items() if name not in PER_RUN and name not in ONLY_ZYGOTE}


def fingerprint(python: str, environment: Mapping[str, str], preload: str) -> str:
    """Changes with the interpreter, the packages installed for it, the repository's programs and the environment.

    Files that were changed in place below ``site-packages`` are not noticed.
    """
    facts: list[object] = [python, sorted(environment.items()), preload, _facts_of(os.path.realpath(python))]
    for folder in interpreter_folders(python):
        packages = sorted(Path(folder).glob("lib/python3*/site-packages"))
        facts += [(str(path), path.stat().st_mtime_ns) for path in packages]
    for part in _CODE:
        for folder, folders, files in os.walk(REPOSITORY / "runner" / part):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            facts += [(name, _facts_of(os.path.join(folder, name))) for name in sorted(files) if name.endswith(".py")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def mark(key: str, reason: str) -> dict[str, Any]:
    """What the mark says: no further zygote of this key for some minutes, and why."""
    return {"key": key, "reason": reason, "until": time.time() + _UNFIT_FOR_S}


def _facts_of(path: str) -> list[int]:
    facts = os.stat(path)
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns]


@contextmanager
def _connected(folder: Path) -> Iterator[socket.socket]:
    """A connection to the zygote of a folder, whose path may be longer than an address can be. Raises OSError."""
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(f"/proc/self/fd/{place}/{SOCKET}")
            yield connection
    finally:
        os.close(place)
