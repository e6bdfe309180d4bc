"""The control sub-folder of one attempt in a container, and the verdict on its end.

``launch.json`` is the intent and comes first. ``container.json`` names the container once it was created. ``orders/``
is what the container reads (``stop``: seconds of grace), ``report/`` what its wrapper wrote, ``result.json`` the end.
The container runs as the tenant, so a report is a claim: causes are believed only where the platform's own facts agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.contract import folder as names
from runner.executors import control
from runner.executors.base import ExecutorError, Observation
from runner.executors.verdict import Verdict

CONTAINER = "container.json"
ORDERS = "orders"
REPORT = "report"
_STOP = "stop"
_LOCK_PATIENCE_S = 60.0
_KILLED, _TERMINATED = 137, 143
_NOT_RUN = (126, 127)
#: What an engine says of a container that ran when its machine went down.
_NO_CODE_KNOWN = 255
#: How the wrapper ends when its container is started a second time: it runs nothing, the first report stands.
_STARTED_BEFORE = 125
_MAX_REPORT_BYTES = 65536
#: What the database's column takes.
_MAX_MEMORY_MIB = 2**31 - 1
_NEVER = "0001-01-01"


@dataclass(frozen=True, slots=True)
class Intent:
    """What is known of an attempt before, during and after its container. ``user_id``: the program's."""

    attempt: str
    spec_digest: str
    run_folder: str
    rank: int
    user_id: int
    memory_mib: int
    time_limit_s: float | None
    stop_grace_s: float
    is_program: bool
    network: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """What the wrapper says of the end. ``ending``: empty, ``stopped`` or ``time_limit``."""

    ending: str
    exit_code: int
    not_run: bool
    started_at: float
    ended_at: float
    max_memory_mib: int
    memory_kills: int
    log_truncated: bool


class AttemptFolder:
    """One sub-folder. It appears whole (``create``) or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orders = path / ORDERS
        self.report = path / REPORT

    def create(self, intent: Intent) -> None:
        """Write the intent, unless it is there. Raises ExecutorError."""
        if self.path.exists():
            return
        new = self.path.with_name(f".new-{secrets.token_hex(8)}")
        try:
            for folder, mode in ((new, 0o711), (new / ORDERS, 0o755), (new / REPORT, 0o700)):
                folder.mkdir(mode=mode)
                folder.chmod(mode)
            os.chown(new / REPORT, intent.user_id, intent.user_id)
            (new / control.LOCK).touch(mode=0o600)
            control.write_json(new / control.LAUNCH, asdict(intent))
            new.rename(self.path)
            names.fsync_folder(self.path.parent)
        except OSError as error:
            if not self.path.exists():
                raise ExecutorError(f"The intent of {intent.attempt} can not be written: {error}") from error

    def intent(self) -> Intent | None:
        """The intent; None when the attempt is not known (any more)."""
        stored = control.read_json(self.path / control.LAUNCH)
        return None if stored is None else Intent(**stored)

    @contextmanager
    def locked(self, patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
        """Nobody else starts or stops this attempt inside the block. Raises ExecutorError, FileNotFoundError."""
        descriptor = os.open(self.path / control.LOCK, os.O_RDWR | os.O_CLOEXEC)
        deadline = time.monotonic() + patience_s
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ExecutorError(f"Attempt {self.path.name} is being started by another process.") from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def container_id(self) -> str | None:
        """The container that was made for this attempt, dead or alive."""
        stored = control.read_json(self.path / CONTAINER)
        return None if stored is None else str(stored["id"])

    def record_container(self, container_id: str) -> None:
        """Remember the container before it is started, so that it is never made twice. Raises OSError."""
        if self.container_id() != container_id:
            control.write_json(self.path / CONTAINER, {"id": container_id})

    def created_at(self) -> float:
        """When the container was made, by the platform's clock; 0 when that is not known."""
        try:
            return (self.path / CONTAINER).stat().st_mtime
        except OSError:
            return 0.0

    def result(self) -> dict[str, Any] | None:
        """How it ended, once that is known."""
        return control.read_json(self.path / control.RESULT)

    def stop_request(self) -> tuple[float, float] | None:
        """When a stop was asked for (epoch seconds) and its grace in seconds."""
        path = self.orders / _STOP
        try:
            return path.stat().st_mtime, float(path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def ask_stop(self, grace_s: float) -> None:
        """Write the order that the wrapper looks for; a later one can only shorten the grace. Raises OSError."""
        known = self.stop_request()
        if known is not None and known[1] <= grace_s:
            return
        new = self.path / f".stop-{secrets.token_hex(8)}"
        new.write_text(f"{max(0.0, grace_s):.3f}\n", encoding="ascii")
        new.chmod(0o644)
        new.replace(self.orders / _STOP)

    def read_report(self) -> Report | None:
        """The wrapper's report, checked in form; None when there is none or it is none."""
        try:
            descriptor = os.open(self.report / "report.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        # The program may have put anything here: a folder, a pipe, 50,000 brackets, a number of 1,000 digits.
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            told = json.loads(os.read(descriptor, _MAX_REPORT_BYTES))
            return Report(
                ending=str(told["ending"]),
                exit_code=int(told["exit_code"]) & 0xFF,
                not_run=bool(told["not_run"]),
                started_at=float(told["started_at"]),
                ended_at=float(told["ended_at"]),
                max_memory_mib=min(max(0, int(told["max_memory_mib"])), _MAX_MEMORY_MIB),
                memory_kills=int(told["memory_kills"]),
                log_truncated=bool(told["log_truncated"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, OSError):
            return None
        finally:
            os.close(descriptor)

    def record_end(self, intent: Intent, verdict: Verdict, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the result where programs and people read it, then where it tells the executor that all is over.

        A full disk costs the files, not the answer: as long as the container is there the verdict can be found again.
        """
        result = {
            "attempt": intent.attempt,
            "spec_digest": intent.spec_digest,
            "exit_code": verdict.exit_code,
            "cause": verdict.cause,
            "message": verdict.message,
            "started_at": None,
            "ended_at": time.time(),
            "max_memory_mib": None,
            "log_truncated": False,
        } | (facts or {})
        run_folder = Path(intent.run_folder)
        with suppress(OSError):
            _take_back(run_folder / names.log_name(intent.rank))
        with suppress(OSError):
            control.write_json(run_folder / names.result_name(intent.rank), result)
            control.write_json(self.path / control.RESULT, result)
        return result


def judge(intent: Intent, report: Report | None, state: dict[str, Any], *, is_stop_asked: bool) -> Verdict:
    """The verdict on an ended container from its report and the engine's ``State``; the message is for the user."""
    if report is not None and int(state["ExitCode"]) not in (report.exit_code, _STARTED_BEFORE):
        report = None  # the wrapper ends with the code that it reports: this one is not its own
    code = report.exit_code if report is not None else int(state["ExitCode"])
    elapsed = _seconds(state["FinishedAt"]) - _seconds(state["StartedAt"])
    is_over_time = intent.time_limit_s is not None and elapsed >= intent.time_limit_s - 1
    ran_out = bool(state["OOMKilled"]) or (report is not None and report.memory_kills > 0)
    memory = f"more than the {intent.memory_mib} MiB it asked for"
    if report is not None and report.not_run and report.ending == "stopped" and is_stop_asked:
        return Verdict("stopped", None, "stopped before it started")
    if report is not None and report.not_run:
        cause = "image_unavailable" if intent.is_program else "command_not_found"
        message = "The image has no interpreter for the platform's programs." if intent.is_program else ""
        return Verdict(cause, code, message)
    if is_stop_asked and (report is None or report.ending == "stopped"):
        return Verdict("stopped", code, "")
    if report is None and code == _NO_CODE_KNOWN:  # seen late, so its time says nothing either
        return Verdict("lost", code, "The machine restarted, and nobody saw the program's end.")
    if is_over_time and (report is None or report.ending == "time_limit"):
        return Verdict("time_limit", code, "")
    if ran_out and code != 0:
        return Verdict("out_of_memory", code, f"The program wanted {memory}.")
    if ran_out:
        return Verdict("exit", code, f"A process of the run was killed on the way, because it wanted {memory}.")
    if code in (_KILLED, _TERMINATED):
        return Verdict("lost", code, f"Ended by signal {code - 128}, which the platform did not send.")
    if report is None and state.get("Error"):
        return Verdict("lost", code, f"The engine says: {state['Error']}")
    return Verdict("command_not_found" if code in _NOT_RUN else "exit", code, "")


def end_facts(report: Report | None, state: dict[str, Any]) -> dict[str, Any]:
    """Times (epoch seconds) and measures of an ended container; a report's where they lie within the engine's."""
    started, ended = _seconds(state["StartedAt"]), _seconds(state["FinishedAt"])
    if report is not None and started - 1 <= report.started_at <= report.ended_at <= ended + 1:
        started, ended = report.started_at, report.ended_at
    return {
        "started_at": started,
        "ended_at": max(started, ended),
        "max_memory_mib": (report.max_memory_mib or None) if report is not None else None,
        "log_truncated": report is not None and report.log_truncated,
    }


def was_started(state: dict[str, Any]) -> bool:
    """Whether the engine ever started this container: then nobody may start it again."""
    return not str(state["StartedAt"]).startswith(_NEVER)


def observation_of(name: str, result: dict[str, Any]) -> Observation:
    """An exited attempt as its result tells it."""
    keys = ("exit_code", "cause", "started_at", "ended_at", "max_memory_mib")
    known = {key: result[key] for key in keys}
    return Observation(name, "exited", result["spec_digest"], warning=result["message"], **known)


def started_at(state: dict[str, Any]) -> float:
    """Epoch seconds of the engine's StartedAt."""
    return _seconds(state["StartedAt"])


def _seconds(text: str) -> float:
    """The engine's times have nine digits after the second; Python reads six."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{(fraction + '000000')[:6]}+00:00").timestamp()


def _take_back(log: Path) -> None:
    """The log of an ended program belongs to the platform again. Raises OSError, also for a symlink."""
    descriptor = os.open(log, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fchown(descriptor, os.geteuid(), os.getegid())
    finally:
        os.close(descriptor)
