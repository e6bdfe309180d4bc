"""What everything that runs shows in the same way: status, log, metrics, events."""

from __future__ import annotations

import codecs
from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponseBase
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.native.content import send_file
from clavier.api.native.fields import Form, WholeNumber
from clavier.api.native.paging import EventCursor
from clavier.api.native.views import NativeView
from clavier.core.errors import Invalid, NotFound
from clavier.runs.models import Run, RunEvent
from clavier.runs.outputs import MAX_READ_BYTES, Chunk, open_regular, read_log, read_metrics
from clavier.runs.queries import events, progress
from clavier.runs.states import EndReason, RunState
from clavier.runs.waiting import explain
from runner.contract import folder

_MAX_OFFSET = 2**62
_STATE_HELP = "null: saved, never started."
_REASON_HELP = "Why it ended; empty while it lives."
STATES = tuple(state.value for state in RunState)
END_REASONS = tuple(reason.value for reason in EndReason)


class RunSummary(serializers.Serializer[Any]):
    """A run, as what it belongs to shows it."""

    id = serializers.UUIDField()
    state = serializers.ChoiceField(STATES)
    end_reason = serializers.ChoiceField(END_REASONS, allow_blank=True, help_text=_REASON_HELP)
    message = serializers.CharField(help_text="How it ended, for people.")
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)


class RunStatus(serializers.Serializer[Any]):
    """What a page polls."""

    state = serializers.ChoiceField(STATES, allow_null=True, help_text=_STATE_HELP)
    why = serializers.CharField(help_text="While PENDING: what it waits for.")
    starts_when = serializers.CharField(help_text="While PENDING: what would let it start.")
    position = serializers.IntegerField(allow_null=True, help_text="While PENDING: 1 is next in its resource group.")
    end_reason = serializers.ChoiceField(END_REASONS, allow_blank=True, help_text=_REASON_HELP)
    message = serializers.CharField(help_text="How it ended, for people.")
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    progress = serializers.DictField(
        help_text="The newest event of each kind that the program wrote: `phase`, `progress`, `metric`, `error`."
    )


class RunEventItem(serializers.Serializer[RunEvent]):
    """Something that happened to a run."""

    at = serializers.DateTimeField()
    from_state = serializers.ChoiceField(STATES, allow_blank=True)
    to_state = serializers.ChoiceField(STATES, allow_blank=True, help_text="Empty: a note, no change of state.")
    reason = serializers.ChoiceField(END_REASONS, allow_blank=True)
    message = serializers.CharField()
    actor_name = serializers.CharField(help_text="Who caused it; empty: the platform.")


RANK_FIELD = WholeNumber(
    min_value=0, max_value=10_000, default=0, help_text="Of a run of several containers: whose log."
)


class OffsetQuery(Form):
    offset = WholeNumber(
        min_value=-_MAX_OFFSET, max_value=_MAX_OFFSET, default=0,
        help_text="Byte to read from: 0, then each `next_offset`. Negative: so many bytes before the end.",
    )  # fmt: skip


class LogQuery(OffsetQuery):
    limit = WholeNumber(min_value=1024, max_value=MAX_READ_BYTES, default=65_536, help_text="Bytes to read at most.")
    rank = RANK_FIELD


class LogFileQuery(Form):
    rank = RANK_FIELD


class Log(serializers.Serializer[Any]):
    """A part of a log, in whole lines."""

    text = serializers.CharField(help_text="UTF-8; broken bytes as U+FFFD.")
    next_offset = serializers.IntegerField(help_text="Bytes: where to go on.")
    size = serializers.IntegerField(help_text="Bytes of the whole log now.")


class Metrics(serializers.Serializer[Any]):
    """A part of what the program reported."""

    items = serializers.ListField(child=serializers.DictField(), help_text="Events, oldest first.")
    next_offset = serializers.IntegerField(help_text="Bytes: where to go on.")


class RunView(NativeView):
    """Base of the views on what a run shows; a subclass says which run."""

    def run_of(self, object_id: Any) -> Run | None:
        """The run; None when there was none yet. Raises NotFound."""
        raise NotImplementedError

    def status(self, object_id: Any) -> Response:
        """State, why it waits, progress."""
        return Response(RunStatus(status_of(self.run_of(object_id))).data)

    def log(self, object_id: Any, form: type[LogQuery] = LogQuery) -> Response:
        """The log from a byte on."""
        run, query = self.run_of(object_id), self.query(form)
        if run is None:
            return Response(log_of(Chunk(b"", 0, 0)))
        rank = checked_rank(run, query["rank"])
        return Response(log_of(read_log(run.pk, query["offset"], query["limit"], to_end=run.is_final, rank=rank)))

    def log_file(self, request: Request, object_id: Any) -> HttpResponseBase:
        """The whole log as a file. Raises NotFound while there is none."""
        run = self.run_of(object_id)
        if run is None:
            raise NotFound("There is no log; it was never started.")
        name = folder.log_name(checked_rank(run, self.query(LogFileQuery)["rank"]))
        stream = open(open_regular(run.pk, (name,)), "rb")  # noqa: SIM115  (the response closes it)
        return send_file(request, stream, f"{run.name}.log", content_type="text/plain; charset=utf-8")

    def metrics(self, object_id: Any) -> Response:
        """What the program reported, from a byte on."""
        run, query = self.run_of(object_id), self.query(OffsetQuery)
        items, next_offset = read_metrics(run.pk, query["offset"]) if run else ([], 0)
        return Response({"items": items, "next_offset": next_offset})

    def events(self, object_id: Any) -> Response:
        """What happened to the run, newest first."""
        self.filters()
        run = self.run_of(object_id)
        happened: QuerySet[RunEvent] = events(run) if run else RunEvent.objects.none()
        return self.page(happened, RunEventItem, EventCursor)


def status_of(run: Run | None) -> dict[str, Any]:
    """The fields of RunStatus."""
    if run is None:
        nothing = dict.fromkeys(("state", "position", "started_at", "ended_at"))
        return {**nothing, "why": "", "starts_when": "", "end_reason": "", "message": "", "progress": {}}
    waiting = explain(run)
    return {
        **{name: getattr(run, name) for name in ("state", "end_reason", "message", "started_at", "ended_at")},
        **{name: getattr(waiting, name) for name in ("why", "starts_when", "position")},
        "progress": progress(run.pk),
    }


def checked_rank(run: Run, rank: int) -> int:
    """A container that the run has. Raises Invalid."""
    if rank >= run.num_containers:
        last = run.num_containers - 1
        raise Invalid(f"rank {rank}: the run has {run.num_containers} containers, 0 to {last}.", field="rank")
    return rank


def log_of(chunk: Chunk) -> dict[str, Any]:
    """Bytes as text; a character that the limit has cut in two is left for the next part."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(chunk.data)
    held_back = len(decoder.getstate()[0])
    return {"text": text, "next_offset": chunk.next_offset - held_back, "size": chunk.size}
