"""Why a run failed: one word, the lines that show it, and what helps. Pure, but for ``diagnose``, which reads the run.

What the platform saw (the end reason) comes before what the program said (its error events) and that before what its
log looks like.
"""

from __future__ import annotations

import re
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
#: In this order: a CUDA error is often followed by a Python traceback, which alone would say less.
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
    ("diverged", re.compile(r"loss (is|became) (nan|inf)|Loss is NaN|non-finite (loss|grad)", re.IGNORECASE)),
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
    sign = _first_sign(lines)
    kind = OF_REASON.get(reason) or next((OF_CODE[code] for code in reversed(codes) if code in OF_CODE), None)
    if kind in (None, "out_of_memory") and sign is not None:
        kind = kind or sign[0]
    at = sign[1] if sign is not None and sign[0] == kind else None
    return Diagnosis(kind or "unknown", ADVICE[kind or "unknown"], _evidence(lines, at))


def shown(diagnosis: Diagnosis) -> dict[str, Any]:
    """``{kind, advice, evidence}`` in the language of the request."""
    return {"kind": diagnosis.kind, "advice": str(_(diagnosis.advice)), "evidence": diagnosis.evidence}


def _first_sign(lines: list[str]) -> tuple[str, int] | None:
    """The first sign of the table that any line has, and the last line that has it."""
    for kind, pattern in SIGNS:
        for number in range(len(lines) - 1, -1, -1):
            if pattern.search(lines[number]):
                return kind, number
    return None


def _evidence(lines: list[str], at: int | None) -> list[str]:
    """The lines around a sign; without one, the last traceback; without that, the end of the log."""
    if at is None:
        starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
        first = max(starts[-1], len(lines) - MAX_EVIDENCE_LINES) if starts else max(0, len(lines) - 5)
        chosen = lines[first:]
    else:
        chosen = lines[max(0, at - MAX_EVIDENCE_LINES + 3) : at + 3]
    return [line for line in chosen if line.strip()][-MAX_EVIDENCE_LINES:]
