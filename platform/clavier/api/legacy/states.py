"""State words of the document, and every word that a filter understands."""

from __future__ import annotations

from django.db.models import Q

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.words import say
from clavier.core.errors import Invalid, quoted
from clavier.runs.models import Run
from clavier.runs.states import RunState

WORDS: dict[RunState, str] = {
    RunState.PENDING: "Pending",
    RunState.PREPARING: "Pending",
    RunState.RUNNING: "Running",
    RunState.STOPPING: "Running",
    RunState.COMPLETED: "Succeeded",
    RunState.FAILED: "Failed",
    RunState.STOPPED: "Stopped",
}
#: Saved and never started.
SAVED = "Created"
#: What the other dialects and older clients call them.
_ALIASES: dict[str, tuple[RunState, ...]] = {
    "queued": (RunState.PENDING, RunState.PREPARING),
    "validating_files": (RunState.PENDING,),
    "init": (RunState.PENDING,),
    "successful": (RunState.COMPLETED,),
    "success": (RunState.COMPLETED,),
    "cancelled": (RunState.STOPPED,),
    "processing": (RunState.PENDING, RunState.PREPARING, RunState.RUNNING, RunState.STOPPING),
    "in_progress": (RunState.RUNNING, RunState.STOPPING),
    "finetune": (RunState.RUNNING, RunState.STOPPING),
    "buildimage": (RunState.RUNNING, RunState.STOPPING),
    "serve": (RunState.RUNNING, RunState.STOPPING),
}


def word_of(run: Run | None) -> str:
    """The state of what a run belongs to."""
    return WORDS[RunState(run.state)] if run else SAVED


def in_state(word: str, *, field: str = "status") -> Q:
    """The filter that a word means, in any case, of what has a ``run``. Raises Invalid (``not_a_choice``)."""
    folded = word.lower()
    if folded == SAVED.lower():
        return Q(run=None)
    named = [state for state, ours in WORDS.items() if folded == ours.lower()]
    found = named or list(_ALIASES.get(folded, ())) or [state for state in RunState if folded == state.value.lower()]
    if not found:
        allowed = ", ".join(dict.fromkeys([SAVED, *WORDS.values()]))
        message = say(
            f"{field}: {quoted(word, 60)} 不是 {allowed} 之一", f"{field}: {quoted(word, 60)} is none of {allowed}."
        )
        raise spoken(Invalid(message, code="not_a_choice", field=field))
    return Q(run__state__in=found)
