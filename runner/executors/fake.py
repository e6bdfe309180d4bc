"""An executor without processes, for tests of the engine: outcomes are scripted, faults are placed, time is given."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runner.contract import folder as names
from runner.executors.base import Cause, ExecutorError, Launch, LaunchRefused, Observation
from runner.executors.launching import check_launch

Call = Literal["start", "list", "stop", "remove"]
_DEFAULT = "*"
_TERM, _KILL = 143, 137


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program will do. ``runs_for_s`` None: until stopped, limited or ``finish``-ed.

    ``files``: path in the run folder -> text, written when it ends by itself; ``log`` is written when it starts.
    ``refused``: ``start`` raises LaunchRefused with this message.
    """

    exit_code: int | None = 0
    cause: Cause = "exit"
    runs_for_s: float | None = 0.0
    ignores_term: bool = False
    max_memory_mib: int | None = 1
    log: str = ""
    files: dict[str, str] = field(default_factory=dict)
    refused: str = ""


@dataclass(slots=True)
class _Fault:
    call: Call
    on_call: int
    takes_effect: bool
    message: str


class FakeExecutor:
    """An ``Executor``. With ``state_folder`` several executors, also in several processes, share one world."""

    def __init__(self, state_folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._file = None if state_folder is None else state_folder / "fake-executor.json"
        if state_folder is not None:
            state_folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._mutex = threading.RLock()
        self._memory = _empty_world()
        self._faults: list[_Fault] = []
        self._calls: dict[Call, int] = {"start": 0, "list": 0, "stop": 0, "remove": 0}

    def will(self, name: str = _DEFAULT, outcome: Outcome | None = None) -> None:
        """Script what the attempt of this name does when it starts; without a name: every attempt not scripted."""
        with self._world() as world:
            world["outcomes"][name] = asdict(outcome or Outcome())

    def finish(self, name: str, exit_code: int | None = 0, cause: Cause = "exit") -> None:
        """End a running attempt now. Raises KeyError for an unknown one."""
        with self._world() as world:
            attempt = world["attempts"][name]
            if attempt["ended_at"] is None:
                self._end(attempt, exit_code, cause, self._clock())

    def fail(self, call: Call, on_call: int = 1, *, takes_effect: bool = False, message: str = "engine down") -> None:
        """Let the n-th call from now raise ExecutorError; ``takes_effect``: the caller crashed after it was done."""
        self._faults.append(_Fault(call, self._calls[call] + on_call, takes_effect, message))

    def starts(self, name: str) -> int:
        """How often a program of this name was really started: the contract wants 0 or 1."""
        with self._world() as world:
            return int(world["starts"].get(name, 0))

    def start(self, launch: Launch) -> None:
        """Start or adopt, as the contract says."""
        check_launch(launch)
        with self._faulty("start"), self._world() as world:
            known = world["attempts"].get(launch.name)
            if known is not None:
                if known["spec_digest"] != launch.spec.digest():
                    raise LaunchRefused(f"Attempt name {launch.name} was already used for other work; use a new name.")
                return
            if launch.name in world["starts"]:
                raise LaunchRefused(f"Attempt {launch.name} has ended and was removed; a retry needs a new name.")
            if launch.name in world["forbidden"]:
                world["attempts"][launch.name] = never = self._new_attempt(launch, Outcome())
                never["started_at"] = None
                self._end(never, None, "stopped", self._clock())
                return
            outcome = Outcome(**(world["outcomes"].get(launch.name) or world["outcomes"].get(_DEFAULT) or {}))
            if outcome.refused:
                raise LaunchRefused(outcome.refused)
            world["starts"][launch.name] = 1
            world["attempts"][launch.name] = self._new_attempt(launch, outcome)
            with open(launch.run_folder / names.log_name(launch.rank), "a", encoding="utf-8") as log:
                log.write(outcome.log)

    def list(self) -> list[Observation]:
        """Every attempt not yet removed, as of the clock's now."""
        with self._faulty("list"), self._world() as world:
            for attempt in world["attempts"].values():
                self._advance(attempt)
            return [_observation(name, attempt) for name, attempt in sorted(world["attempts"].items())]

    def stop(self, name: str, grace_s: float) -> None:
        """Ends at once, or after the grace when the program ignores TERM."""
        with self._faulty("stop"), self._world() as world:
            attempt = world["attempts"].get(name)
            if attempt is None:
                world["forbidden"][name] = True
                return
            self._advance(attempt)
            asked = self._clock() + max(0.0, grace_s)
            attempt["kill_at"] = min(asked, attempt["kill_at"] or asked)
            if attempt["ended_at"] is None and not attempt["outcome"]["ignores_term"]:
                self._end(attempt, _TERM, "stopped", self._clock())
            self._advance(attempt)

    def remove(self, name: str) -> None:
        """Forget an exited attempt; ExecutorError while it runs."""
        with self._faulty("remove"), self._world() as world:
            attempt = world["attempts"].get(name)
            if attempt is None:
                return
            self._advance(attempt)
            if attempt["ended_at"] is None:
                raise ExecutorError(f"Attempt {name} is running: stop it, then remove it.")
            del world["attempts"][name]

    def _new_attempt(self, launch: Launch, outcome: Outcome) -> dict[str, Any]:
        return {
            "name": launch.name,
            "run_folder": str(launch.run_folder),
            "rank": launch.rank,
            "spec_digest": launch.spec.digest(),
            "time_limit_s": launch.spec.limits.time_limit_s,
            "stop_grace_s": launch.spec.limits.stop_grace_s,
            "labels": launch.labels,
            "outcome": asdict(outcome),
            "started_at": self._clock(),
            "kill_at": None,
            "ended_at": None,
            "exit_code": None,
            "cause": None,
        }

    def _advance(self, attempt: dict[str, Any]) -> None:
        """Let happen what was due: the earliest of its own end, the time limit and the kill of a stop."""
        if attempt["ended_at"] is not None:
            return
        outcome = Outcome(**attempt["outcome"])
        due: list[tuple[float, int | None, Cause]] = []
        if outcome.runs_for_s is not None:
            due.append((attempt["started_at"] + outcome.runs_for_s, outcome.exit_code, outcome.cause))
        if attempt["time_limit_s"] is not None:
            limit = attempt["started_at"] + attempt["time_limit_s"]
            late = attempt["stop_grace_s"] if outcome.ignores_term else 0
            due.append((limit + late, _KILL if outcome.ignores_term else _TERM, "time_limit"))
        if attempt["kill_at"] is not None:
            due.append((attempt["kill_at"], _KILL, "stopped"))
        if due and (first := min(due, key=lambda event: event[0]))[0] <= self._clock():
            self._end(attempt, first[1], first[2], first[0])

    def _end(self, attempt: dict[str, Any], exit_code: int | None, cause: Cause, ended_at: float) -> None:
        attempt.update(ended_at=ended_at, exit_code=exit_code, cause=cause)
        run_folder = Path(attempt["run_folder"])
        if cause == "exit":
            for path, text in attempt["outcome"]["files"].items():
                (run_folder / path).parent.mkdir(parents=True, exist_ok=True)
                (run_folder / path).write_text(text, encoding="utf-8")
        if cause != "lost" and run_folder.is_dir():
            seen = asdict(_observation(attempt["name"], attempt))
            seen["attempt"] = seen.pop("name")
            seen.pop("state")
            names.write_json_durably(
                run_folder / names.result_name(attempt["rank"]), seen | {"message": "", "log_truncated": False}
            )

    @contextmanager
    def _faulty(self, call: Call) -> Iterator[None]:
        with self._mutex:
            self._calls[call] += 1
            fault = next((f for f in self._faults if (f.call, f.on_call) == (call, self._calls[call])), None)
        if fault is not None and not fault.takes_effect:
            raise ExecutorError(fault.message)
        yield
        if fault is not None:
            raise ExecutorError(fault.message)

    @contextmanager
    def _world(self) -> Iterator[dict[str, Any]]:
        """The shared state, alone; on disk it is written back only when the block succeeds."""
        with self._mutex:
            if self._file is None:
                yield self._memory
                return
            with open(self._file.with_suffix(".lock"), "a", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                world = json.loads(self._file.read_text("utf-8")) if self._file.exists() else _empty_world()
                yield world
                names.write_json_durably(self._file, world)


def _empty_world() -> dict[str, Any]:
    return {"attempts": {}, "outcomes": {}, "starts": {}, "forbidden": {}}


def _observation(name: str, attempt: dict[str, Any]) -> Observation:
    seen = Observation(name, "running", attempt["spec_digest"], started_at=attempt["started_at"])
    if attempt["ended_at"] is None:
        return seen
    return replace(
        seen,
        state="exited",
        exit_code=attempt["exit_code"],
        cause=attempt["cause"],
        ended_at=attempt["ended_at"],
        max_memory_mib=attempt["outcome"]["max_memory_mib"],
    )
