"""Evaluation tasks."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.content import RANGE
from clavier.api.native.fields import (
    OPTIONS_HELP,
    YEAR_S,
    AnyObject,
    Choice,
    Form,
    Identifier,
    Name,
    OwnCodeFields,
    Resources,
    Strict,
    Text,
    WholeNumber,
)
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.run_parts import (
    STATES,
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
from evaluation_app.custom import create_custom_evaluation_task
from evaluation_app.models import CREATE_WAYS, EvaluationTask
from evaluation_app.queries import samples, score_table, visible_evaluations
from evaluation_app.services import (
    MAX_NEW_TOKENS,
    METRICS,
    access_evaluation_task,
    create_evaluation_task,
    delete_evaluation_task,
    retry_evaluation_task,
    stop_evaluation_task,
)

TAG = "evaluation tasks"


class Evaluation(Owned):
    """A model version judged on questions with known answers, beside its base where it has one."""

    name = serializers.CharField()
    description = serializers.CharField()
    create_way = serializers.ChoiceField(CREATE_WAYS, help_text="system: questions; custom: the owner's own program.")
    model_version = Reference(allow_null=True)
    dataset_version = Reference(allow_null=True)
    image = Reference(source="image_version", allow_null=True, help_text="Of own code; null: the platform's own.")
    own_code = serializers.DictField(help_text="Of own code: its command, folders and environment.")
    resources = serializers.DictField()
    options = serializers.DictField(help_text="Resource group, nodes, roles, priority; only what was asked for.")
    results = serializers.DictField(
        help_text="Of own code: `{metrics: {name: value}, sources: {name: file}, files}` from its output folder."
    )
    metrics = serializers.ListField(child=serializers.ChoiceField(METRICS))
    decoding = serializers.DictField(help_text="`{max_new_tokens}`.")
    limit = serializers.IntegerField(allow_null=True, help_text="How many questions; null: all.")
    state = serializers.ChoiceField(
        STATES, source="run.state", read_only=True, default=None, allow_null=True, help_text="Of the newest run."
    )
    run = RunSummary(allow_null=True, help_text="The newest run.")
    fingerprint = serializers.CharField(help_text="Only evaluations with equal fingerprints may be ranked.")
    scores = serializers.SerializerMethodField(
        help_text="`{metric: {label: {value, low, high}}}`; labels are base and tuned, or model. 95 % interval."
    )

    def get_scores(self, task: EvaluationTask) -> dict[str, dict[str, dict[str, float | None]]]:
        """Empty until it is complete."""
        return score_table(task)


class EvaluationFilters(Form):
    search = Text(default="", allow_blank=True, max_length=200, help_text="Text in the name.")


class NewEvaluation(Strict):
    name = Name(max_length=100)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    model_version = Identifier(help_text="Id of a model version.")
    dataset_version = Identifier(help_text="Id of a data set version with questions and answers.")
    metrics = serializers.ListField(child=Choice(METRICS), required=False, help_text="Absent: all.")
    max_new_tokens = WholeNumber(min_value=1, max_value=MAX_NEW_TOKENS, required=False, help_text="Of each answer.")
    limit = WholeNumber(
        min_value=1, max_value=2**31 - 1, required=False, allow_null=True, help_text="How many questions; absent: all."
    )
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Seconds; absent: 1 day.")


class NewCustomEvaluation(OwnCodeFields):
    name = Name(max_length=100)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    dataset_version = Identifier(required=False, allow_null=True, help_text="Id; excludes data_folder.")
    model_version = Identifier(required=False, allow_null=True, help_text="Id; excludes model_folder.")
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Seconds; absent: 1 day.")


class Samples(serializers.Serializer[Any]):
    """A part of the results, one for each question."""

    items = serializers.ListField(child=serializers.DictField())
    next_offset = serializers.IntegerField(help_text="Bytes: where to go on.")


class EvaluationsView(NativeView):
    @operation("list_evaluation_tasks", TAG, "List evaluations", query=EvaluationFilters, page_of=Evaluation)
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(visible_evaluations(self.actor, **self.filters(EvaluationFilters)), Evaluation)

    @operation("create_evaluation_task", TAG, "Judge a model version", body=NewEvaluation, answer=Evaluation,
               status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("All metrics", {
                       "name": "faq-judged", "model_version": "6b1f7c1e-5f3a-4a52-9f0e-0d1f2a3b4c5d",
                       "dataset_version": "0f8fad5b-d9cb-469f-a165-70867728950e", "max_new_tokens": 32,
                   }, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Started at once."""
        task = create_evaluation_task(actor=self.actor, **self.body(NewEvaluation))
        return Response(Evaluation(task).data, status=201)


class CustomEvaluationsView(NativeView):
    @operation("create_custom_evaluation_task", TAG, "Judge with your own program", body=NewCustomEvaluation,
               answer=Evaluation, status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("OpenCompass", {
                       "name": "opencompass", "code_folder": "private/code", "model_folder": "private/llama2-13b",
                       "command": "python3 run.py configs/eval.py -w ${output_dir} --model_dir ${model_dir}",
                       "output_folder": "private/opencompass-out",
                   }, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Started at once; metrics are taken from the output folder."""
        task = create_custom_evaluation_task(actor=self.actor, **self.body(NewCustomEvaluation))
        return Response(Evaluation(task).data, status=201)


class EvaluationView(NativeView):
    @operation("get_evaluation_task", TAG, "An evaluation with its scores", answer=Evaluation, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Base beside tuned."""
        return Response(Evaluation(access_evaluation_task(self.actor, task_id)).data)

    @operation("delete_evaluation_task", TAG, "Delete an evaluation with its results", status=204, errors=(404, 409))
    def delete(self, request: Request, task_id: UUID) -> Response:
        """Refused while it runs."""
        delete_evaluation_task(actor=self.actor, task=access_evaluation_task(self.actor, task_id))
        return Response(status=204)


class StopEvaluationView(NativeView):
    @operation("stop_evaluation_task", TAG, "Stop an evaluation", answer=Evaluation, errors=(400, 404, 409))
    def post(self, request: Request, task_id: UUID) -> Response:
        """The state is STOPPING until the program has ended."""
        self.body()
        task = stop_evaluation_task(actor=self.actor, task=access_evaluation_task(self.actor, task_id))
        return Response(Evaluation(task).data)


class RetryEvaluationView(NativeView):
    @operation("retry_evaluation_task", TAG, "Run a failed or stopped evaluation again", answer=Evaluation,
               errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, task_id: UUID) -> Response:
        """A new run; the old one stays."""
        self.body()
        task = retry_evaluation_task(actor=self.actor, task=access_evaluation_task(self.actor, task_id))
        return Response(Evaluation(task).data)


class SamplesView(NativeView):
    @operation("read_evaluation_samples", TAG, "Question, reference, answers and scores", query=OffsetQuery,
               answer=Samples, errors=(404,))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> Response:
        """From a byte on, in the order of the questions."""
        items, next_offset = samples(access_evaluation_task(self.actor, task_id), self.query(OffsetQuery)["offset"])
        return Response({"items": items, "next_offset": next_offset})


class OfEvaluation(RunView):
    """Views on the newest run of an evaluation."""

    def run_of(self, object_id: Any) -> Run | None:
        """Raises NotFound."""
        return access_evaluation_task(self.actor, object_id).run


class EvaluationStatusView(OfEvaluation):
    @operation("get_evaluation_task_status", TAG, "State and progress, for polling", answer=RunStatus, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of the newest run."""
        return self.status(task_id)


class EvaluationMetricsView(OfEvaluation):
    @operation("read_evaluation_task_metrics", TAG, "What the program reported", query=OffsetQuery, answer=Metrics,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of the newest run, from a byte on."""
        return self.metrics(task_id)


class EvaluationLogView(OfEvaluation):
    @operation("read_evaluation_task_log", TAG, "The log from a byte on", query=LogQuery, answer=Log, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of the newest run."""
        return self.log(task_id)


class EvaluationLogFileView(OfEvaluation):
    @operation("download_evaluation_task_log", TAG, "Download the whole log", answer=BINARY, media_type="text/plain",
               parameters=(RANGE,), errors=(404, 416))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> HttpResponseBase:
        """Of the newest run."""
        return self.log_file(request, task_id)


class EvaluationEventsView(OfEvaluation):
    @operation("list_evaluation_task_events", TAG, "What happened to the newest run", page_of=RunEventItem,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> Response:
        """Newest first."""
        return self.events(task_id)
