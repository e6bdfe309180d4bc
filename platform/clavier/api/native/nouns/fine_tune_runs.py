"""The runs of fine-tune tasks: what the newest one says, and all of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.native.content import RANGE
from clavier.api.native.nouns.fine_tune_tasks import TAG
from clavier.api.native.run_parts import (
    Log,
    LogQuery,
    Metrics,
    OffsetQuery,
    RunEventItem,
    RunStatus,
    RunSummary,
    RunView,
)
from clavier.api.native.schema import BINARY, operation
from clavier.api.native.views import NativeView
from clavier.runs.models import Run
from finetune_app.queries import runs_of
from finetune_app.services import access_fine_tune_task


class TaskRunsView(NativeView):
    @operation("list_fine_tune_task_runs", TAG, "List a task's runs", page_of=RunSummary, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Newest first."""
        self.filters()
        return self.page(runs_of(access_fine_tune_task(self.actor, task_id)), RunSummary)


class OfTask(RunView):
    """Views on the newest run of a task."""

    def run_of(self, object_id: Any) -> Run | None:
        """Raises NotFound."""
        return access_fine_tune_task(self.actor, object_id).run


class TaskStatusView(OfTask):
    @operation("get_fine_tune_task_status", TAG, "State and progress, for polling", answer=RunStatus, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of the newest run."""
        return self.status(task_id)


class TaskMetricsView(OfTask):
    @operation("read_fine_tune_task_metrics", TAG, "Losses and other events", query=OffsetQuery, answer=Metrics,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of the newest run, from a byte on."""
        return self.metrics(task_id)


class TaskLogView(OfTask):
    @operation("read_fine_tune_task_log", TAG, "The log from a byte on", query=LogQuery, answer=Log, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of the newest run."""
        return self.log(task_id)


class TaskLogFileView(OfTask):
    @operation("download_fine_tune_task_log", TAG, "Download the whole log", answer=BINARY, media_type="text/plain",
               parameters=(RANGE,), errors=(404, 416))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> HttpResponseBase:
        """Of the newest run."""
        return self.log_file(request, task_id)


class TaskEventsView(OfTask):
    @operation("list_fine_tune_task_events", TAG, "What happened to the newest run", page_of=RunEventItem,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> Response:
        """Newest first."""
        return self.events(task_id)
