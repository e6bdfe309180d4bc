"""From what an executor saw to why the attempt ended (the table of docs/runs.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clavier.runs.states import EndReason
from runner.contract import exits
from runner.executors.base import Observation


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reason, and the sentence for the user."""

    reason: EndReason
    message: str


OWN_EXITS = {
    exits.USER_ERROR: "The program refused its input.",
    exits.DIVERGED: "The training diverged: the loss is not a number.",
    exits.RENDER_MISMATCH: "The server's tokens differ from the trainer's.",
    exits.UNREACHABLE: "A remote host could not be reached.",
}
#: What a system call, a shell and a thread library say when no process may be made any more.
_OUT_OF_PROCESSES = re.compile(r"Resource temporarily unavailable|can't start new thread|[Cc]annot fork")


def verdict_of(seen: Observation, said: str, *, was_asked_to_leave: bool = False) -> Verdict:
    """The verdict on an exited attempt; ``said`` is the program's own last error, if any.

    User errors are never retried; only what nobody asked for (lost, killed from outside) is infrastructure.
    ``was_asked_to_leave``: the platform stopped it to make room, so its run waits again.
    """
    code = seen.exit_code
    if was_asked_to_leave and (seen.cause in ("stopped", "lost") or code in (128 + 9, 128 + 15)):
        return Verdict(EndReason.PREEMPTED, "It made room for a run whose tenant wanted its share, and waits again.")
    if seen.cause == "stopped":
        # A stop that a user asked for overrides this: the run is STOPPING then.
        return Verdict(EndReason.INFRASTRUCTURE, "The executor ended it though nobody had asked for that.")
    if seen.cause == "time_limit":
        return Verdict(
            EndReason.TIME_LIMIT, "The time limit was reached. Raise it, or resume from the last checkpoint."
        )
    if seen.cause == "out_of_memory":
        used = f" (it used {seen.max_memory_mib} MiB)" if seen.max_memory_mib else ""
        return Verdict(
            EndReason.OUT_OF_MEMORY,
            f"The run used more memory than its limit{used}. Ask for more, or lower the batch size.",
        )
    if seen.cause == "image_unavailable":
        return Verdict(EndReason.IMAGE_UNAVAILABLE, seen.warning or "The container image can not be had or run here.")
    if seen.cause == "command_not_found" or code in (126, 127):
        why = f": {said}" if said else "."
        return Verdict(EndReason.COMMAND_NOT_FOUND, f"The command could not be executed (exit code {code}){why}")
    if seen.cause == "lost" or code in (128 + 9, 128 + 15):
        why = seen.warning or "The process was killed from outside, or the machine restarted."
        return Verdict(EndReason.EXECUTOR_LOST, why)
    if code == exits.OK:
        return Verdict(EndReason.COMPLETED, seen.warning)
    if code in OWN_EXITS:
        return Verdict(EndReason.EXIT_NONZERO, said or OWN_EXITS[code])
    why = f": {said}" if said else "; its log says why."
    if _OUT_OF_PROCESSES.search(said):
        why += " It reached the process limit of a run: start fewer workers."
    return Verdict(EndReason.EXIT_NONZERO, f"The program ended with exit code {code}{why}")
