"""How a program speaks: JSON lines for machines in ``metrics.jsonl``, plain lines for people on stdout."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from runner.contract import exits, folder
from runner.contract.run_spec import RunSpec

#: What a shell reports for a process that SIGTERM ended.
EXIT_STOPPED = 128 + signal.SIGTERM


class ProgramError(Exception):
    """The input is at fault: shown to the user as it is, without a traceback."""

    def __init__(self, code: str, message: str, field: str | None = None, exit_code: int = exits.USER_ERROR) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.exit_code = exit_code


class Stopped(Exception):
    """The program was asked to stop and has sealed what it had."""


#: Metrics that few people read: they are in the events and the charts, and would make every log line two.
ONLY_CHARTED = frozenset({"memory/peak_mib", "train/clipped_share", "weights/norm"})


class Reporter:
    """Appends events to ``metrics.jsonl`` (key ``t``: seconds since this start) and prints one line for people each.

    A program that resumed reports the steps after its checkpoint again: for one step the last line counts.
    """

    def __init__(self, run_folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = open(run_folder / folder.METRICS, "a", encoding="utf-8")  # noqa: SIM115  lives with the program
        self._clock = clock
        self._started = clock()
        self._first_step: tuple[int, float] | None = None

    def phase(self, name: str, message: str) -> None:
        """A stage begins or ends: ``device``, ``model``, ``data``, ``train``, ``save``, ``done``."""
        self._event("phase", name=name, message=message)
        self._line("INFO", message)

    def progress(self, step: int, total_steps: int) -> None:
        """How far the program is, and the seconds left once that is known; no log line, ``metric`` writes one."""
        remaining_s = self._remaining_s(step, total_steps)
        left = {} if remaining_s is None else {"eta_s": round(remaining_s, 1)}
        self._event("progress", step=step, total_steps=total_steps, **left)

    def metric(self, step: int, total_steps: int, epoch: float, values: Mapping[str, float]) -> None:
        """Measured values of one step, named like ``train/loss``."""
        self._event("metric", step=step, total_steps=total_steps, epoch=round(epoch, 4), **values)
        parts = [f"step {step}/{total_steps}", *_spoken(values)]
        remaining_s = self._remaining_s(step, total_steps)
        if remaining_s is not None:
            parts.append(f"ETA {_duration(remaining_s)}")
        self._line("INFO", " | ".join(parts))

    def sample(self, values: Mapping[str, Any]) -> None:
        """One generated or scored sample, for the eye of the user."""
        self._event("sample", **values)

    def warning(self, message: str, code: str = "warning") -> None:
        """Something the user should know although the program goes on."""
        self._event("warning", code=code, message=message)
        self._line("WARN", message)

    def checkpoint(self, step: int, path: str, metrics: Mapping[str, float]) -> None:
        """A checkpoint is sealed; ``path`` is relative to the run folder."""
        self._event("checkpoint", step=step, path=path, metrics=dict(metrics))
        self._line("INFO", f"checkpoint of step {step} saved in {path}")

    def artifact(self, path: str, kind: str, size_bytes: int) -> None:
        """A file or folder of the result exists; ``path`` is relative to the run folder."""
        self._event("artifact", path=path, artifact_kind=kind, size_bytes=size_bytes)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The final numbers of the run; the last event of a program that went well."""
        self._event("summary", **values)
        self._line("INFO", "finished: " + ", ".join(f"{name} {_number(value)}" for name, value in values.items()))

    def error(self, code: str, message: str, field: str | None = None) -> None:
        """Why the program ends without a result."""
        self._event("error", code=code, message=message, field=field)
        self._line("ERROR", f"{message} [{code}{f', field {field}' if field else ''}]")

    def close(self) -> None:
        """Close the event file."""
        self._stream.close()

    def _event(self, kind: str, **values: Any) -> None:
        event = {"t": round(self._clock() - self._started, 3), "kind": kind, **values}
        # JSON has no NaN; a diverged value is written as null so that every reader can parse the line.
        event = {key: None if _is_broken(value) else value for key, value in event.items()}
        self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._stream.flush()

    def _line(self, level: str, text: str) -> None:
        print(f"{level:<5} {text}", flush=True)

    def _remaining_s(self, step: int, total_steps: int) -> float | None:
        """Seconds to the end at the speed since the first reported step; None until two steps are known."""
        now = self._clock()
        if self._first_step is None or step <= self._first_step[0]:
            self._first_step = (step, now)
            return None
        first, at = self._first_step
        return (now - at) / (step - first) * (total_steps - step)


@dataclass(slots=True)
class ProgramContext:
    """What a program gets: its folder, its spec, a voice, and whether it should stop."""

    run_folder: Path
    spec: RunSpec
    report: Reporter
    should_stop: bool = False  # True once SIGTERM came: seal what is there and raise Stopped

    @property
    def parameters(self) -> dict[str, Any]:
        """The program's own input out of ``spec.json``."""
        return self.spec.parameters

    @property
    def output(self) -> Path:
        """Where results go; made on first use."""
        return self._folder(folder.OUTPUT)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are sealed; made on first use."""
        return self._folder(folder.CHECKPOINTS)

    @property
    def work(self) -> Path:
        """Scratch space of this run; made on first use."""
        return self._folder(folder.WORK)

    def _folder(self, name: str) -> Path:
        path = self.run_folder / name
        path.mkdir(exist_ok=True)
        return path


def run_program(main: Callable[[ProgramContext], None]) -> None:
    """Run a program on the folder in ``sys.argv[1]`` and exit with the code of ``contract.exits`` that fits.

    SIGTERM sets ``context.should_stop``; a second SIGTERM ends the process at once.
    """
    if len(sys.argv) != 2:
        print(f"usage: python -m {main.__module__} RUN_FOLDER", file=sys.stderr)
        sys.exit(exits.USER_ERROR)
    run_folder = Path(sys.argv[1]).resolve()
    spec = RunSpec.from_json(json.loads((run_folder / folder.SPEC).read_text(encoding="utf-8")))
    context = ProgramContext(run_folder, spec, Reporter(run_folder))

    def on_terminate(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        context.should_stop = True

    signal.signal(signal.SIGTERM, on_terminate)
    sys.exit(_run(main, context))


def require(parameters: Mapping[str, Any], name: str) -> Any:
    """A parameter that must be there. Raises ProgramError naming it."""
    if parameters.get(name) is None:
        raise ProgramError("parameter_missing", f"the run spec lacks the parameter {name!r}", field=name)
    return parameters[name]


def _run(main: Callable[[ProgramContext], None], context: ProgramContext) -> int:
    try:
        main(context)
    except Stopped as stopped:
        context.report.phase("stopped", str(stopped) or "stopped on request")
        return EXIT_STOPPED
    except ProgramError as error:
        context.report.error(error.code, error.message, error.field)
        return error.exit_code
    except Exception as error:  # the top of the program: everything unforeseen is logged whole and is a failure
        traceback.print_exc()
        context.report.error("program_failed", f"{type(error).__name__}: {error}")
        return 1
    finally:
        sys.stdout.flush()
    return exits.OK


def _spoken(values: Mapping[str, float]) -> list[str]:
    """The parts of a log line: the known names short, the others as they are, those for charts alone not at all."""
    parts = []
    for name, value in values.items():
        if name in ONLY_CHARTED:
            continue
        if name == "train/tokens_per_second":
            parts.append(f"{value:,.0f} tok/s")
        elif name == "train/learning_rate":
            parts.append(f"lr {value:.1e}".replace("e-0", "e-"))
        elif name == "train/loss":
            parts.append(f"loss {value:.4f}")
        elif name == "train/grad_norm":
            parts.append(f"grad {value:.2f}")
        else:
            parts.append(f"{name} {_number(value)}")
    return parts


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))


def _duration(seconds: float) -> str:
    """Rounded the way people say it: 40 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
