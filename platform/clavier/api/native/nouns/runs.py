"""Runs: what is behind tasks, evaluations, imports and replicas."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.native.content import RANGE
from clavier.api.native.fields import Choice, Form, StateChoice, Strict, WholeNumber
from clavier.api.native.nouns.common import Owned
from clavier.api.native.run_parts import END_REASONS, STATES, Log, LogFileQuery, LogQuery, RunEventItem, RunView
from clavier.api.native.schema import BINARY, operation
from clavier.api.native.views import NativeView
from clavier.runs.models import Run
from clavier.runs.options import HIGHEST_PRIORITY, LOWEST_PRIORITY
from clavier.runs.queries import access_run, operated_run, visible_runs
from clavier.runs.services import change_priority
from clavier.runs.waiting import OBSTACLES, explain
from runner.contract.run_spec import RUN_KINDS


class RunItem(Owned):
    """A run in a list."""

    kind = serializers.ChoiceField(RUN_KINDS)
    name = serializers.CharField()
    subject_id = serializers.UUIDField(help_text="Id of the task, version or service for which it was made.")
    state = serializers.ChoiceField(STATES)
    end_reason = serializers.ChoiceField(END_REASONS, allow_blank=True, help_text="Empty while it lives.")
    message = serializers.CharField(help_text="How it ended, for people.")
    resource_group = serializers.CharField()
    priority = serializers.IntegerField()
    is_urgent = serializers.BooleanField()
    num_containers = serializers.IntegerField(help_text="More than 1: started all at once, one log each.")
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)


class PeerItem(serializers.Serializer[Any]):
    """A further container of a run of several."""

    rank = serializers.IntegerField()
    node = serializers.CharField(source="node.name")


class AttemptItem(serializers.Serializer[Any]):
    """One start of its program."""

    number = serializers.IntegerField()
    node = serializers.CharField(source="node.name")
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    exit_code = serializers.IntegerField(allow_null=True)
    end_reason = serializers.ChoiceField(END_REASONS, allow_blank=True)
    peers = PeerItem(many=True, help_text="Further containers, by rank.")
    max_memory_mib = serializers.IntegerField(allow_null=True)


class WaitingItem(serializers.Serializer[Any]):
    """Why a run waits, from what is now."""

    obstacle = serializers.ChoiceField(OBSTACLES, allow_blank=True, help_text="What is in the way; empty: nothing.")
    why = serializers.CharField()
    starts_when = serializers.CharField(help_text="What would let it start.")
    position = serializers.IntegerField(allow_null=True, help_text="1 is next in its resource group.")


class RunDetail(RunItem):
    """A run with its attempts."""

    waiting = serializers.SerializerMethodField()
    attempts = AttemptItem(many=True)

    @extend_schema_field(WaitingItem)
    def get_waiting(self, run: Run) -> Any:
        """A few queries while it waits, none later."""
        return WaitingItem(explain(run)).data


class ChangedRun(Strict):
    priority = WholeNumber(min_value=LOWEST_PRIORITY, max_value=HIGHEST_PRIORITY, help_text="Higher goes first.")


class RunFilters(Form):
    state = StateChoice(STATES, required=False)
    kind = Choice(RUN_KINDS, required=False)


class RunsView(NativeView):
    @operation("list_runs", "runs", "List runs", query=RunFilters, page_of=RunItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        runs = visible_runs(self.actor).filter(**self.filters(RunFilters)).select_related("created_by")
        return self.page(runs, RunItem)


class RunDetailView(NativeView):
    @operation("get_run", "runs", "A run with its attempts", answer=RunDetail, errors=(404,))
    def get(self, request: Request, run_id: UUID) -> Response:
        """State, why it waits, how it ended."""
        return Response(RunDetail(access_run(self.actor, run_id)).data)

    @operation("change_run", "runs", "Change the priority of a waiting run (operators)", body=ChangedRun,
               answer=RunDetail, errors=(404, 409))  # fmt: skip
    def patch(self, request: Request, run_id: UUID) -> Response:
        """Of any tenant."""
        run = operated_run(self.actor, run_id)
        change_priority(actor=self.actor, run=run, **self.body(ChangedRun))
        return Response(RunDetail(run).data)


class OfRun(RunView):
    """Views on a run by its own id."""

    def run_of(self, object_id: Any) -> Run:
        """Raises NotFound."""
        return access_run(self.actor, object_id)


class RunEventsView(OfRun):
    @operation("list_run_events", "runs", "What happened to a run", page_of=RunEventItem, errors=(404,))
    def get(self, request: Request, run_id: UUID) -> Response:
        """Newest first."""
        return self.events(run_id)


class RunLogView(OfRun):
    @operation("read_run_log", "runs", "The log from a byte on", query=LogQuery, answer=Log, errors=(404,))
    def get(self, request: Request, run_id: UUID) -> Response:
        """Of all its attempts."""
        return self.log(run_id)


class RunLogFileView(OfRun):
    @operation("download_run_log", "runs", "Download the whole log", answer=BINARY, media_type="text/plain",
               query=LogFileQuery, parameters=(RANGE,), errors=(404, 416))  # fmt: skip
    def get(self, request: Request, run_id: UUID) -> HttpResponseBase:
        """Of all its attempts."""
        return self.log_file(request, run_id)
