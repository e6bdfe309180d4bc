"""How a run ended, as the document's details show it: a stable word and a sentence."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.words import translated
from clavier.runs.models import Run
from clavier.runs.states import EndReason, RunState

WORDS: dict[EndReason, str] = {
    EndReason.COMPLETED: "",
    EndReason.EXIT_NONZERO: "exit_code",
    EndReason.OUT_OF_MEMORY: "out_of_memory",
    EndReason.TIME_LIMIT: "time_limit",
    EndReason.COMMAND_NOT_FOUND: "command_not_found",
    EndReason.IMAGE_UNAVAILABLE: "image_unavailable",
    EndReason.NO_OUTPUT: "no_output",
    EndReason.BAD_OUTPUT: "bad_output",
    EndReason.STORAGE_QUOTA: "quota_exceeded",
    EndReason.EXECUTOR_LOST: "infrastructure",
    EndReason.INFRASTRUCTURE: "infrastructure",
    EndReason.INVALID_SPEC: "invalid_spec",
    EndReason.STOPPED_BY_USER: "stopped",
    EndReason.STOPPED_BY_OPERATOR: "stopped",
    EndReason.PREEMPTED: "",
}
CAN_NOT_EXECUTE = 126


class End(serializers.Serializer[Any]):
    """The fields of a detail that say how it ended."""

    message = serializers.CharField(allow_blank=True, help_text="结束原因 / how it ended")
    error = serializers.CharField(
        allow_blank=True,
        help_text="失败原因代码，如 exit_code、out_of_memory / a stable word; empty unless it failed",
    )


def end_of(run: Run | None) -> dict[str, str]:
    """The two fields; empty while it has not ended."""
    return {"message": said_of(run), "error": error_of(run)}


def said_of(run: Run | None) -> str:
    """What the platform or the program said last, in the language of the request; empty when it said nothing."""
    return translated(error_of(run) or "note", run.message) if run and run.message else ""


def error_of(run: Run | None) -> str:
    """The word for why a run failed or was stopped."""
    if run is None or run.state not in (RunState.FAILED, RunState.STOPPED) or not run.end_reason:
        return ""
    if run.end_reason == EndReason.COMMAND_NOT_FOUND:
        last = run.attempts.order_by("-number").first()
        if last is not None and last.exit_code == CAN_NOT_EXECUTE:
            return "command_not_executable"
    return WORDS[EndReason(run.end_reason)]
