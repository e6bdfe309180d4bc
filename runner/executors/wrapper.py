"""The wrapper of one attempt: ``python -I -S wrapper.py CONTROL_SUB_FOLDER``. It outlives whoever started it.

It holds the attempt's lock, has its keeper run the program, writes the log, enforces time and memory, obeys
``stop.json`` and writes ``result.json``. TERM, INT and HUP do not end it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # a script. Appended, not put first: nothing there may hide a module of the standard library.
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from runner.contract.folder import result_name
from runner.executors import confine, control, process_tree
from runner.executors.control import Order
from runner.executors.keeper import Pipes, execute, keep
from runner.executors.program_log import ProgramLog, widen
from runner.executors.run_folder import lend, prepare
from runner.executors.verdict import Verdict, judge

_LOCK_PATIENCE_S = 30.0
_TICK_S = 0.25
_MEMORY_TICK_S = 1.0
_GONE_TICKS = 3
_RESULT_PATIENCE_S = 600.0
_ROOM = ".room"
_ROOM_BYTES = 8192


def main(folder: Path) -> None:
    """``attend`` as a process of nobody."""
    if os.fork() != 0:
        os._exit(0)
    attend(folder)


def attend(folder: Path, become: Callable[[Order], NoReturn] = execute) -> None:
    """Run the attempt of a control sub-folder, unless another wrapper does or did. ``become``: see ``keep``."""
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lock = control.take_lock(folder, _LOCK_PATIENCE_S)
    if lock is None:
        return
    stored = control.read_json(folder / control.LAUNCH)
    if stored is None:
        raise SystemExit(f"{folder / control.LAUNCH} can not be read")
    Wrapper(folder, Order.from_json(stored), lock, become).run()


class Wrapper:
    """One attempt from the lock to the result."""

    def __init__(self, folder: Path, order: Order, lock: int, become: Callable[[Order], NoReturn]) -> None:
        self._folder = folder
        self._order = order
        self._lock = lock
        self._become = become
        self._ending: str | None = None
        self._kill_at = float("inf")
        self._gone_ticks = 0
        self._max_memory_mib = 0
        self._measure_at = 0.0

    def run(self) -> None:
        """Start the program, stay until no process of it is left, write the result."""
        order = self._order
        if (stop := self._stop_request()) is not None:
            now = time.time()
            verdict = Verdict("stopped", None, f"stopped before it started, {stop['grace_s']:g} s grace")
            self._write_result(verdict, started_at=None, ended_at=now, log=None)
            return
        log = ProgramLog(prepare(order.run_folder, order.user_id, order.rank), order.max_log_mib << 20)
        for bind in order.binds:
            if bind.writable and order.user_id is not None and bind.path != order.run_folder:
                lend(bind.path, order.user_id)
        for path in self._results():
            _reserve(path)
        if order.isolation == "platform_user" and os.geteuid() == 0:
            log.say("not isolated: the program runs as root, because the host allows no other user for it")
        kills_before = process_tree.kernel_memory_kills()
        started_at = time.time()
        self._record_start(started_at)
        report = self._supervise(log)
        was_kernel = process_tree.kernel_memory_kills() > kills_before
        verdict = judge(report, self._ending, was_kernel)
        if verdict.message:
            log.say(verdict.message)
        log.close()
        self._write_result(verdict, started_at=started_at, ended_at=time.time(), log=log)

    def _record_start(self, started_at: float) -> None:
        """From here on the program counts as started. Closing stdout tells the caller, who waits for it."""
        record = {"attempt": self._order.attempt, "started_at": started_at, "boot_id": control.boot_id()}
        control.write_json(self._folder / control.STARTED, {**record, "wrapper": os.getpid()})
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 1)

    def _supervise(self, log: ProgramLog) -> bytes:
        """Fork the keeper, pump and watch until it has ended; what it reported."""
        output, output_end = os.pipe()
        widen(output)
        report, report_end = os.pipe()
        lifeline_end, lifeline = os.pipe()
        process_tree.become_subreaper()
        if self._order.isolation == "private_namespaces":
            confine.new_process_namespace()
        began = time.monotonic()
        keeper = os.fork()
        if keeper == 0:
            for descriptor in (output, report, lifeline, log.descriptor):
                os.close(descriptor)
            folder = os.path.join(self._order.run_folder, self._order.start_in)
            keep(self._order, folder, Pipes(output_end, report_end, lifeline_end), self._become)
        for descriptor in (output_end, report_end, lifeline_end):
            os.close(descriptor)
        os.set_blocking(output, False)
        told = self._watch(keeper, output, report, log, began)
        process_tree.end_all(is_init=False)
        log.pump(output, until_empty=True)
        os.close(lifeline)
        return told

    def _watch(self, keeper: int, output: int, report: int, log: ProgramLog, began: float) -> bytes:
        poller = select.poll()
        poller.register(output, select.POLLIN)
        poller.register(report, select.POLLIN)
        told = b""
        tick_at = began
        while True:
            for descriptor, _ in poller.poll(_TICK_S * 1000):
                if descriptor == output:
                    if not log.pump(output):
                        poller.unregister(output)
                else:
                    piece = os.read(report, 65536)
                    if not piece:
                        return told
                    told += piece
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + _TICK_S
                self._tick(keeper, log, now, began)

    def _tick(self, keeper: int, log: ProgramLog, now: float, began: float) -> None:
        """Look at memory, time, stop requests and the control folder, and carry out what is due."""
        order = self._order
        if now >= self._measure_at:
            self._measure_at = now + (_MEMORY_TICK_S if now - began > _MEMORY_TICK_S else _TICK_S)
            used = process_tree.memory_mib(process_tree.descendants(keeper), order.memory_mib)
            self._max_memory_mib = max(self._max_memory_mib, used)
            if used > order.memory_mib:
                note = f"memory: the program holds {used} MiB, more than the {order.memory_mib} MiB it asked for"
                self._end("out_of_memory", 0, note, keeper, log, now)
        if order.time_limit_s is not None and now - began >= order.time_limit_s:
            note = f"time limit of {order.time_limit_s:g} s reached"
            self._end("time_limit", order.stop_grace_s, note, keeper, log, now)
        if (stop := self._stop_request()) is not None:
            self._end("stopped", stop["grace_s"], "stop requested", keeper, log, now)
        self._gone_ticks = 0 if control.holds(self._folder, self._lock) else self._gone_ticks + 1
        if self._gone_ticks >= _GONE_TICKS:
            # Nobody can see this attempt any more and another may be started: two must never run at once.
            self._end("lost", order.stop_grace_s, "the control folder was removed", keeper, log, now)
        if now >= self._kill_at:
            process_tree.send(signal.SIGKILL, process_tree.descendants(keeper))

    def _end(self, cause: str, grace_s: float, note: str, keeper: int, log: ProgramLog, now: float) -> None:
        """Begin the end: TERM now, KILL after the grace. Called again each tick; only a nearer end then counts."""
        if self._ending is None:
            self._ending = cause
            log.say(f"{note}; ending the program, {grace_s:g} s grace")
            if grace_s > 0:
                process_tree.send(signal.SIGTERM, process_tree.descendants(keeper))
        self._kill_at = min(self._kill_at, now + grace_s)

    def _stop_request(self) -> dict[str, Any] | None:
        return control.read_json(self._folder / control.STOP)

    def _write_result(
        self, verdict: Verdict, *, started_at: float | None, ended_at: float, log: ProgramLog | None
    ) -> None:
        """First where programs and people read it, last where it tells the executor that all is over."""
        result = {
            "attempt": self._order.attempt,
            "spec_digest": self._order.spec_digest,
            "exit_code": verdict.exit_code,
            "cause": verdict.cause,
            "message": verdict.message,
            "started_at": started_at,
            "ended_at": ended_at,
            "max_memory_mib": self._max_memory_mib or None,
            "log_truncated": log is not None and log.truncated,
        }
        for path in self._results():
            _write_patiently(path, result)

    def _results(self) -> tuple[Path, Path]:
        return Path(self._order.run_folder) / result_name(self._order.rank), self._folder / control.RESULT


def _reserve(path: Path) -> None:
    """Hold room for a result beside it, so that a disk which fills up during the run still takes it."""
    descriptor = os.open(path.with_name(_ROOM), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _ROOM_BYTES)
    finally:
        os.close(descriptor)


def _write_patiently(path: Path, value: dict[str, Any]) -> None:
    """Wait for room on a full disk rather than lose the result; give up where the folder itself is gone."""
    deadline = time.monotonic() + _RESULT_PATIENCE_S
    while True:
        try:
            path.with_name(_ROOM).unlink(missing_ok=True)
            control.write_json(path, value)
            return
        except OSError as error:
            sys.stderr.write(f"{path}: {error}\n")
            if not path.parent.is_dir() or time.monotonic() > deadline:
                return
        time.sleep(1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
