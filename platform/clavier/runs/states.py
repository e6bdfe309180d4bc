"""The seven states of a run, the edges between them, and the reasons for which a run or an attempt ends."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is."""

    PENDING = "PENDING"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class EndReason(StrEnum):
    """Why a run or attempt ended."""

    COMPLETED = "COMPLETED"
    EXIT_NONZERO = "EXIT_NONZERO"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIME_LIMIT = "TIME_LIMIT"
    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    IMAGE_UNAVAILABLE = "IMAGE_UNAVAILABLE"
    NO_OUTPUT = "NO_OUTPUT"
    BAD_OUTPUT = "BAD_OUTPUT"
    STORAGE_QUOTA = "STORAGE_QUOTA"
    EXECUTOR_LOST = "EXECUTOR_LOST"
    INFRASTRUCTURE = "INFRASTRUCTURE"
    INVALID_SPEC = "INVALID_SPEC"
    STOPPED_BY_USER = "STOPPED_BY_USER"
    STOPPED_BY_OPERATOR = "STOPPED_BY_OPERATOR"
    PREEMPTED = "PREEMPTED"


S = RunState

#: The only edges there are; a database trigger refuses all others.
EDGES: dict[RunState, frozenset[RunState]] = {
    S.PENDING: frozenset({S.PREPARING, S.STOPPED, S.FAILED}),
    S.PREPARING: frozenset({S.RUNNING, S.STOPPING, S.COMPLETED, S.FAILED, S.PENDING}),
    S.RUNNING: frozenset({S.STOPPING, S.COMPLETED, S.FAILED, S.PENDING}),
    S.STOPPING: frozenset({S.STOPPED}),
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset(),
    S.STOPPED: frozenset(),
}

FINAL_STATES = frozenset(state for state, targets in EDGES.items() if not targets)
LIVE_STATES = frozenset(RunState) - FINAL_STATES
#: States in which an attempt holds resources.
ACTIVE_STATES = LIVE_STATES - {S.PENDING}

#: Why an attempt ends after which its run waits again: never the end of a run.
REQUEUED_REASONS = frozenset({EndReason.PREEMPTED})

#: Every other reason leads to exactly one final state.
FINAL_STATE_OF: dict[EndReason, RunState] = {
    **dict.fromkeys(frozenset(EndReason) - REQUEUED_REASONS, S.FAILED),
    EndReason.COMPLETED: S.COMPLETED,
    EndReason.STOPPED_BY_USER: S.STOPPED,
    EndReason.STOPPED_BY_OPERATOR: S.STOPPED,
}

#: The platform's fault: a new attempt is made. All other reasons are final at once.
RETRIED_REASONS = frozenset({EndReason.EXECUTOR_LOST, EndReason.INFRASTRUCTURE})
