"""Why a run failed: one word, the lines that show it, and what helps. Pure, but for ``diagnose``, which reads the run.

What the platform saw (the end reason) comes before what the program said (its error events) and that before what its
log looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop

from clavier.runs.models import Run
from clavier.runs.outputs import read_log, read_metrics
from clavier.runs.queries import TAIL_BYTES
from clavier.runs.states import EndReason, RunState

MAX_EVIDENCE_LINES = 12
MAX_LINE_CHARACTERS = 400
#: Lines from the end of the log that are looked at.
MAX_LINES = 2000


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``kind``: a stable word of ``ADVICE``. ``evidence``: lines of the log, the most telling last."""

    kind: str
    advice: str
    evidence: list[str] = field(default_factory=list)


#: Kind -> what helps, for people.
ADVICE: dict[str, str] = {
    "out_of_memory": gettext_noop(
        "The run needed more memory than it had. Use smaller batches, shorter samples or gradient checkpointing, or "
        "ask for more memory."
    ),
    "gpu_out_of_memory": gettext_noop(
        "The GPU's memory was full. Use smaller batches with more accumulation, shorter samples, gradient "
        "checkpointing or QLoRA, or a larger GPU."
    ),
    "diverged": gettext_noop(
        "The loss became no number or exploded. Lower the learning rate, warm up longer, clip gradients, and look at "
        "the rows that are named."
    ),
    "bad_data": gettext_noop("The data does not fit the recipe. Look at the rows that are named and upload a fix."),
    "disk_full": gettext_noop(
        "The disk or the storage quota was full. Delete what is not needed, keep fewer checkpoints."
    ),
    "missing_file": gettext_noop("A file that the program wanted is not there. Check the paths of folders and files."),
    "missing_module": gettext_noop(
        "The program imports a package that its image lacks. Use an image that has it, or put it beside the code."
    ),
    "no_network": gettext_noop(
        "The program wanted the network, which training runs do not have. Upload what it needs beforehand."
    ),
    "no_permission": gettext_noop(
        "The program may not write there. Write to the output, checkpoint or working folder only."
    ),
    "peers_lost": gettext_noop(
        "The containers of the run lost each other. Look at the log of the rank that failed first, then run it again."
    ),
    "command_not_found": gettext_noop("The command is not in the image, or is not executable."),
    "image_unavailable": gettext_noop("The image could not be had or does not run here. Import it again."),
    "no_output": gettext_noop("The program ended well but left no usable output. Let it write to the output folder."),
    "time_limit": gettext_noop("The time limit was reached. Raise it, or train fewer steps."),
    "preempted": gettext_noop("Borrowed capacity was wanted back too often. Run it again, or with fewer resources."),
    "infrastructure": gettext_noop("The platform was at fault. Run it again; tell the operator if it happens again."),
    "user_code": gettext_noop("The program failed with an error of its own; the end of its log says which."),
    "unknown": gettext_noop("Nothing in the log says why. Run it again with more logging."),
}

#: What the platform itself saw needs no reading of the log.
OF_REASON: dict[str, str] = {
    EndReason.OUT_OF_MEMORY: "out_of_memory",
    EndReason.TIME_LIMIT: "time_limit",
    EndReason.COMMAND_NOT_FOUND: "command_not_found",
    EndReason.IMAGE_UNAVAILABLE: "image_unavailable",
    EndReason.STORAGE_QUOTA: "disk_full",
    EndReason.PREEMPTED: "preempted",
    EndReason.EXECUTOR_LOST: "infrastructure",
    EndReason.INFRASTRUCTURE: "infrastructure",
    EndReason.NO_OUTPUT: "no_output",
    EndReason.BAD_OUTPUT: "no_output",
}
#: Codes of our programs' error events. They run out of memory on a GPU only; of main memory the platform sees it.
OF_CODE: dict[str, str] = {
    "diverged": "diverged",
    "not_finite": "diverged",
    "loss_spike": "diverged",
    "out_of_memory": "gpu_out_of_memory",
    "unreachable": "no_network",
    "bad_row": "bad_data",
    "data_invalid": "bad_data",
    "data_empty": "bad_data",
    "data_too_short": "bad_data",
    "data_missing": "missing_file",
    "model_missing": "missing_file",
    "host_unreachable": "no_network",
    "empty_dataset": "bad_data",
    "missing_column": "bad_data",
    "no_usable_rows": "bad_data",
}
#: Within a part of the log in this order: a CUDA error is often followed by another one, which alone would say less.
SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "gpu_out_of_memory",
        re.compile(r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
    ),
    (
        "out_of_memory",
        re.compile(r"^MemoryError|std::bad_alloc|Cannot allocate memory|DefaultCPUAllocator: can't alloc"),
    ),
    ("disk_full", re.compile(r"No space left on device|Disk quota exceeded|ENOSPC")),
    (
        "diverged",
        # As sentences, and as trainers print numbers: {'loss': nan, ...}, loss=nan, loss nan.
        re.compile(
            r"loss (is|became) (nan|inf)|non-finite (loss|grad)|loss['\"]?\s*[:=]?\s*['\"]?[-+]?(nan|inf(inity)?)\b",
            re.IGNORECASE,
        ),
    ),
    ("missing_module", re.compile(r"ModuleNotFoundError|ImportError: cannot import|No module named")),
    (
        "no_network",
        re.compile(
            r"Temporary failure in name resolution|Network is unreachable|MaxRetryError|OfflineModeIsEnabled"
            r"|ConnectionError|Could not resolve host|couldn't connect to 'https?://"
        ),
    ),
    (
        "peers_lost",
        re.compile(r"NCCL (error|WARN)|Connection closed by peer|gloo.*(timeout|connect)|RendezvousTimeout"),
    ),
    ("missing_file", re.compile(r"FileNotFoundError|No such file or directory")),
    ("no_permission", re.compile(r"PermissionError|Permission denied|Read-only file system")),
    (
        "bad_data",
        re.compile(r"JSONDecodeError|UnicodeDecodeError|KeyError: '(text|messages|prompt|label|input|output)'"),
    ),
    ("user_code", re.compile(r"^Traceback \(most recent call last\)|^[A-Za-z_.]*(Error|Exception): ")),
)
TRACEBACK = re.compile(r"^Traceback \(most recent call last\)")
#: How Python joins the traceback of an exception to that of the one that led to it.
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
#: How torchrun says that one of the processes it started has failed, after that process's own traceback.
LAUNCHER_FAILED = "ChildFailedError"
#: What is said before a traceback that says less: each is often followed by another error.
BEFORE_A_TRACEBACK = ("gpu_out_of_memory", "out_of_memory", "disk_full", "diverged", "peers_lost")
#: The end of a log, or what lies shortly before a traceback.
LAST_LINES = 30


def diagnose(run: Run) -> Diagnosis | None:
    """What went wrong with a failed run; None for one that has not failed."""
    if run.state != RunState.FAILED:
        return None
    log = read_log(run.pk, -TAIL_BYTES, to_end=True).data.decode("utf-8", "replace")
    recent, _next = read_metrics(run.pk, -TAIL_BYTES)
    codes = [str(event.get("code", "")) for event in recent if event.get("kind") == "error"]
    return read_signs(run.end_reason, codes, log.splitlines())


def read_signs(reason: str, codes: list[str], lines: list[str]) -> Diagnosis:
    """The diagnosis from the end reason, the codes of the program's error events and its log."""
    lines = [line[:MAX_LINE_CHARACTERS] for line in lines[-MAX_LINES:]]
    kind = OF_REASON.get(reason) or next((OF_CODE[code] for code in reversed(codes) if code in OF_CODE), None)
    if kind is None:
        kind, at = _sign_of(lines) or ("unknown", None)
    else:
        at = next((number for sign, number in _signs_in(lines, 0) if sign == kind), None)
    return Diagnosis(kind, ADVICE[kind], _evidence(lines, at))


def shown(diagnosis: Diagnosis) -> dict[str, Any]:
    """``{kind, advice, evidence}`` in the language of the request."""
    return {"kind": diagnosis.kind, "advice": str(_(diagnosis.advice)), "evidence": diagnosis.evidence}


def _sign_of(lines: list[str]) -> tuple[str, int] | None:
    """The sign of the end: in and after the last traceback, without one in the last lines; then in the whole log.

    Where a traceback tells no more than that there is an error, what the hardware said shortly before tells more.
    """
    last = _last_traceback(lines)
    if last is None:
        return next(_signs_in(lines, max(0, len(lines) - LAST_LINES)), None) or next(_signs_in(lines, 0), None)
    start, end = last
    found = next(_signs_in(lines[:end], start), None)
    if found is None or found[0] != "user_code":
        return found
    before = (sign for sign in _signs_in(lines[:start], max(0, start - LAST_LINES)) if sign[0] in BEFORE_A_TRACEBACK)
    return next(before, found)


def _signs_in(lines: list[str], start: int) -> Iterator[tuple[str, int]]:
    """Each sign of the table that a line from ``start`` on has, in the table's order, and the last such line."""
    for kind, pattern in SIGNS:
        for number in range(len(lines) - 1, start - 1, -1):
            if pattern.search(lines[number]):
                yield kind, number
                break


def _last_traceback(lines: list[str]) -> tuple[int, int] | None:
    """Where the last traceback begins, with those that led to it, and the end of the log.

    That of a launcher of processes, which ends a log, says nothing.
    """
    starts = [number for number, line in enumerate(lines) if TRACEBACK.search(line)]
    end = len(lines)
    while starts and any(LAUNCHER_FAILED in line for line in lines[starts[-1] : end]):
        end = starts.pop()
    while len(starts) > 1 and any(line.startswith(CHAINED) for line in lines[starts[-2] : starts[-1]]):
        starts.pop()
    return (starts[-1], end) if starts else None


def _evidence(lines: list[str], at: int | None) -> list[str]:
    """The lines around a sign; without one, the last traceback; without that, the end of the log."""
    if at is None:
        starts = [number for number, line in enumerate(lines) if TRACEBACK.search(line)]
        first = max(starts[-1], len(lines) - MAX_EVIDENCE_LINES) if starts else max(0, len(lines) - 5)
        chosen = lines[first:]
    else:
        chosen = lines[max(0, at - MAX_EVIDENCE_LINES + 3) : at + 3]
    return [line for line in chosen if line.strip()][-MAX_EVIDENCE_LINES:]
