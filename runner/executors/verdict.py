"""Why an attempt ended, from what the keeper reported and what the wrapper did."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass

_NOT_RUN = (126, 127)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``cause`` and ``exit_code`` as in ``base.Observation``; ``message`` is for the log, empty when all is said."""

    cause: str
    exit_code: int | None
    message: str


def judge(report: bytes, ending: str | None, kernel_killed_for_memory: bool) -> Verdict:
    """The verdict; ``ending`` is the cause for which the wrapper ended the program, None when it did not."""
    if not report:
        return Verdict(ending or "lost", None, "the process that keeps the program was killed")
    told = json.loads(report)
    if "failure" in told:
        return Verdict("lost", None, f"the program could not be started: {told['failure']}")
    if "not_run" in told:
        return Verdict("command_not_found", told["not_run"], f"command not run: {told['reason']}")
    status: int = told["status"]
    exit_code = status if status >= 0 else 128 - status
    if ending is not None:
        return Verdict(ending, exit_code, "")
    if status == -signal.SIGKILL and kernel_killed_for_memory:
        return Verdict("out_of_memory", exit_code, "killed by the kernel: the host had no memory left")
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        return Verdict("lost", exit_code, f"ended by signal {-status}, which the platform did not send")
    return Verdict("command_not_found" if status in _NOT_RUN else "exit", exit_code, "")
