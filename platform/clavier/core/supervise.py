"""Runs the processes of one installation in the foreground: starts, watches, restarts, stops them. No Django here."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
#: A child that lived this long before it ended by itself is started again at once; only quick deaths make pauses grow.
STEADY_AFTER_S = 60.0
#: The same for one that somebody killed, which says little about whether it would have gone on.
STEADY_IF_KILLED_S = 3.0
READY_WITHIN_S = 30.0
#: Everything is gone this long after a stop was asked for; a second of the promised ten is left for the last KILL.
STOP_WITHIN_S = 9.0
LOG_FILE_BYTES = 10 * 2**20
LOG_FILES_KEPT = 3
LONGEST_LINE_BYTES = 64 * 2**10
POLL_S = 0.1

KILLED = "was killed by"

_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class AlreadyRunning(Exception):
    """Another supervisor holds this home; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive. ``ready`` is asked often and must answer within a second; None means at once.

    ``prepare`` is called before every start, also after a crash.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], bool] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 5.0
    prepare: Callable[[], object] | None = None


@contextmanager
def only_one(lock_file: Path) -> Iterator[None]:
    """Hold the lock of a home; raises AlreadyRunning with the holder's pid. A killed holder's lock is free."""
    with open(lock_file, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            pid = stream.read().strip() or "unknown"
            raise AlreadyRunning(
                f"Clavier is already running on {lock_file.parent} (pid {pid}). "
                f"Stop it with `kill {pid}`, or set CLAVIER_HOME to another folder."
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


class Supervisor:
    """Keeps children alive until SIGINT, SIGTERM or SIGHUP; their output goes to ``out`` and to a log file each."""

    def __init__(self, children: Sequence[Child], log_folder: Path, out: TextIO) -> None:
        log_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        width = max(len(child.name) for child in children)
        coloured = out.isatty() and "NO_COLOR" not in os.environ
        self._out = out
        self._keepers = [
            _Keeper(
                child, _Output(child.name, width, _COLOURS[i % len(_COLOURS)] if coloured else None, log_folder, out)
            )
            for i, child in enumerate(children)
        ]
        self._stop_signals = 0
        self._stopping = asyncio.Event()

    def run(self, is_ready: Callable[[], bool] | None = None, banner: str = "") -> int:
        """Start the children in order, print ``banner`` once ``is_ready`` holds, and return when all have ended.

        Returns 0 when every child ended in its grace, 1 when one had to be killed, 130 after a second Ctrl-C.
        """
        return asyncio.run(self._run(is_ready, banner))

    async def _run(self, is_ready: Callable[[], bool] | None, banner: str) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                loop.add_signal_handler(number, self._on_stop_signal)
        starting = asyncio.create_task(self._start_all(is_ready, banner))
        starting.add_done_callback(self._on_started)
        await self._stopping.wait()
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([starting])
        killed = await self._stop_all()
        if not starting.cancelled() and (error := starting.exception()):
            raise error
        return 130 if self._stop_signals > 1 else int(killed)

    async def _start_all(self, is_ready: Callable[[], bool] | None, banner: str) -> None:
        for keeper in self._keepers:
            keeper.start()
            if not await _holds(keeper.child.ready, READY_WITHIN_S):
                keeper.output.say(f"not ready after {READY_WITHIN_S:g} s; going on, its log may tell why")
        if not await _holds(is_ready, READY_WITHIN_S):
            self._say(
                f"Not ready after {READY_WITHIN_S:g} s; the lines above and the log files tell why. Still trying."
            )
            await _holds(is_ready, float("inf"))
        self._say(banner)

    def _on_started(self, starting: asyncio.Task[None]) -> None:
        if not starting.cancelled() and starting.exception():
            self._stopping.set()

    def _on_stop_signal(self) -> None:
        self._stop_signals += 1
        if self._stop_signals == 1:
            self._say("Stopping; once more kills at once.")
        else:
            for keeper in self._keepers:
                keeper.kill()
        self._stopping.set()

    async def _stop_all(self) -> bool:
        """Stop in reverse order within STOP_WITHIN_S, a share kept for every later child. True: one was killed."""
        deadline = time.monotonic() + STOP_WITHIN_S
        share_s = min(1.0, STOP_WITHIN_S / len(self._keepers))
        killed = False
        for left, keeper in reversed(list(enumerate(self._keepers))):
            grace_s = min(keeper.child.stop_grace_s, deadline - time.monotonic() - left * share_s)
            killed |= await keeper.stop(grace_s)
        return killed

    def _say(self, text: str) -> None:
        if text:
            _write(self._out, f"{text}\n")


class _Keeper:
    """One child over its lives: starts it, passes its output on, and starts it again, after a pause if it must be."""

    def __init__(self, child: Child, output: _Output) -> None:
        self.child = child
        self.output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()
        self._was_killed = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def stop(self, grace_s: float) -> bool:
        """Signal, wait for the grace, kill. True when it had to be killed."""
        self._stop_asked.set()
        if self._task is None:
            return False
        if self._process:
            os.kill(self._process.pid, self.child.stop_signal)
        done, _ = await asyncio.wait([self._task], timeout=max(grace_s, 0.0))
        if not done:
            self.output.say(f"did not end within {max(grace_s, 0.0):.1f} s; killing it")
            self.kill()
        await self._task
        return self._was_killed

    def kill(self) -> None:
        """Kill the child and whatever it left in its process group."""
        self._stop_asked.set()
        if self._process:
            self._was_killed = True
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _keep(self) -> None:
        pause_s = 0.0
        while not self._stop_asked.is_set():
            started = time.monotonic()
            ending = await self._live()
            alive_s = time.monotonic() - started
            if self._stop_asked.is_set():
                return
            pause_s = pause_after(alive_s, pause_s, was_killed=ending.startswith(KILLED))
            self.output.say(f"{ending} after {alive_s:.1f} s; starting it again in {pause_s:g} s")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), pause_s)

    async def _live(self) -> str:
        """One life of the child; how it ended, in words."""
        try:
            if self.child.prepare:
                self.child.prepare()
            self._process = process = _spawn(self.child)
        except OSError as error:
            return f"could not be started ({error.strerror}: {self.child.argv[0]})"
        assert process.stdout
        pipe, loop = process.stdout.fileno(), asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        loop.add_reader(pipe, lambda: self.output.pump(pipe) or loop.remove_reader(pipe))
        await _exited(process.pid)
        # Still a zombie, so nobody else can have its group's number yet. Nothing of it may go on holding a port.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._process = None
        code = process.wait()
        loop.remove_reader(pipe)
        self.output.pump(pipe)
        self.output.flush()
        process.stdout.close()
        return f"{KILLED} {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def pause_after(alive_s: float, last_pause_s: float, *, was_killed: bool) -> float:
    """Seconds before a child is started again: none after a steady life, twice the last ones after a quick death."""
    if alive_s >= (STEADY_IF_KILLED_S if was_killed else STEADY_AFTER_S):
        return 0.0
    return min(max(FIRST_PAUSE_S, last_pause_s * 2), LONGEST_PAUSE_S)


class _Output:
    """Where one child's lines go: prefixed to the terminal, plain to ``<name>.log``, which rotates by size."""

    def __init__(self, name: str, width: int, colour: int | None, log_folder: Path, out: TextIO) -> None:
        padded = name.ljust(width)
        self._prefix = f"{padded} | " if colour is None else f"\x1b[{colour}m{padded} |\x1b[0m "
        self._file = RotatingFileHandler(
            log_folder / f"{name}.log",
            maxBytes=LOG_FILE_BYTES,
            backupCount=LOG_FILES_KEPT,
            encoding="utf-8",
            delay=True,
        )
        self._out = out
        self._rest = b""

    def pump(self, pipe: int) -> bool:
        """Pass on what is in the pipe now; False at its end."""
        while True:
            try:
                data = os.read(pipe, LONGEST_LINE_BYTES)
            except BlockingIOError:
                return True
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._line(line)
            if not data or len(self._rest) > LONGEST_LINE_BYTES:
                self.flush()
            if not data:
                return False

    def flush(self) -> None:
        """Pass on a last line that has no end."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def say(self, text: str) -> None:
        """The supervisor's own word about this child."""
        self._line(f"[supervisor] {text}".encode())

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        self._file.emit(logging.makeLogRecord({"msg": text}))
        _write(self._out, f"{self._prefix}{text}\n")


def _spawn(child: Child) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own, which ends when this process does, even by SIGKILL."""
    parent = os.getpid()

    def end_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, child.stop_signal)
        if os.getppid() != parent:  # the parent died before prctl: no signal will come
            os._exit(1)

    # preexec_fn is safe here: this process has one thread.
    return subprocess.Popen(
        child.argv,
        env=dict(child.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=end_with_parent,
    )


async def _exited(pid: int) -> None:
    """Wait until a child has exited, and leave it a zombie."""
    descriptor, over, loop = os.pidfd_open(pid), asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _holds(condition: Callable[[], bool] | None, within_s: float) -> bool:
    """Poll until a condition holds; False when it did not in time."""
    deadline = time.monotonic() + within_s
    while condition is not None and not condition():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _write(out: TextIO, text: str) -> None:
    # A terminal that went away must not end the platform: the log files have every line.
    with suppress(OSError, ValueError):
        out.write(text)
        out.flush()
