"""Runs that make or measure data set versions, and data plugins."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import (
    YEAR_S,
    AnyObject,
    Choice,
    Form,
    Identifier,
    Name,
    ObjectOrText,
    Resources,
    Strict,
    Text,
    WholeNumber,
)
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.nouns.datasets import SPLIT_HELP, SUBSET_HELP
from clavier.api.native.run_parts import Log, LogQuery, RunStatus, RunSummary, RunView
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from clavier.runs.models import Run
from datasets_app.models import TASK_KINDS, TASK_STATES, DataTask
from datasets_app.overlaps import MAX_AGAINST, measure_overlap
from datasets_app.plugins import access_plugin, create_plugin, delete_plugin, plugins_of, run_plugin
from datasets_app.queries import access_dataset, access_dataset_version
from datasets_app.steps import SPLITS
from datasets_app.tasks import access_data_task, delete_data_task, stop_data_task, tasks_of
from datasets_app.validation import PURPOSES
from models_app.data_sources import SOURCES, fetch_version
from models_app.token_counts import MAX_LENGTH, count_tokens, lost_at

TAG = "datasets"
PURPOSE = Choice(tuple(PURPOSES), required=False, help_text="What the rows are for; demands their columns.")
_MAPPING_HELP = "The platform's column names to the file's: `{question: q}`. Absent: guessed where none fits."


class DataTaskItem(Owned):
    """A run that makes a version (fetch, plugin) or measures one (tokens, overlap)."""

    kind = serializers.ChoiceField(TASK_KINDS)
    state = serializers.ChoiceField(TASK_STATES, help_text="checking: the gate reads what the run left.")
    message = serializers.CharField(help_text="Why it failed.")
    dataset = Reference()
    version = Reference(allow_null=True, help_text="What it reads.")
    made_version = Reference(allow_null=True)
    plugin = Reference(allow_null=True)
    request = serializers.DictField(help_text="What was asked for.")
    run = RunSummary(allow_null=True)


class DataTaskDetail(DataTaskItem):
    """A task with what it found."""

    result = serializers.DictField(
        help_text="Of tokens: `{samples, tokens, learned, mean, longest, quantiles, histogram, at, path, ...}`, where "
        "`at` has for each length the samples that are longer and the shares of learned tokens lost. Of overlap: "
        "`{rows, sets: [{label, rows, exact, near, samples, compared}], within, notes}`. "
        "Of a refused file: `{problems}`."
    )


class DataTaskFilters(Form):
    dataset = Identifier(required=False, help_text="Of this data set.")
    version = Identifier(required=False, help_text="That read this version.")


class NewFetch(Strict):
    source = Choice(SOURCES, help_text="`url` (of the web) or `s3` (an object store of yours).")  # type: ignore[assignment]
    location = Text(max_length=2000, help_text="`https://host/file.jsonl`, or `store/bucket/key`.")
    file_name = Text(required=False, allow_blank=True, max_length=255, help_text="Where the location has none.")
    purpose = PURPOSE
    mapping = AnyObject(required=False, help_text=_MAPPING_HELP)
    split = Choice(SPLITS, required=False, help_text=SPLIT_HELP)
    subset = Text(required=False, allow_blank=True, max_length=100, help_text=SUBSET_HELP)


class NewPluginRun(Strict):
    plugin = Identifier(help_text="Id of a data plugin.")
    parameters = ObjectOrText(
        required=False, help_text="What the plugin declares, as an object or as a text `{'name': 'value'}`."
    )
    input_version = Identifier(required=False, allow_null=True, help_text="Its rows lie in `${input_dir}/train`.")
    purpose = PURPOSE
    mapping = AnyObject(required=False, help_text=_MAPPING_HELP)
    split = Choice(SPLITS, required=False, help_text=SPLIT_HELP)
    subset = Text(required=False, allow_blank=True, max_length=100, help_text=SUBSET_HELP)
    resources = Resources(required=False)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Seconds; absent: a day.")


class NewTokenCount(Strict):
    model_version = Identifier(help_text="Whose tokenizer and template.")
    max_length = WholeNumber(min_value=1, max_value=MAX_LENGTH, required=False, help_text="Judged in the report too.")


class NewOverlap(Strict):
    against = serializers.ListField(
        child=Identifier(), required=False, max_length=MAX_AGAINST,
        help_text="Versions; absent: the other splits made with it, or labelled so in its subset.",
    )  # fmt: skip
    threshold = serializers.FloatField(min_value=0.5, max_value=1, default=0.8, help_text="Similarity that counts.")


class LengthQuery(Form):
    max_length = WholeNumber(min_value=1, max_value=MAX_LENGTH, default=1024, help_text="Tokens of a sample.")


class Loss(serializers.Serializer[Any]):
    max_length = serializers.IntegerField()
    longer = serializers.IntegerField(help_text="Samples that are longer.")
    lost_truncate = serializers.FloatField(help_text="Share of the learned tokens that is cut off.")
    lost_drop = serializers.FloatField(help_text="Share that is lost when longer samples are dropped.")


class PluginItem(Owned):
    """A program of a user that makes data."""

    name = serializers.CharField()
    version = serializers.CharField()
    plugin_class = serializers.CharField()
    provider = serializers.CharField()
    description = serializers.CharField()
    parameters = serializers.ListField(child=serializers.DictField())
    command = serializers.SerializerMethodField()
    code_folder = serializers.SerializerMethodField()
    image = Reference(source="image_version", allow_null=True)
    output_file = serializers.CharField()
    may_use_network = serializers.BooleanField(help_text="Set by operators.")

    def get_command(self, plugin: Any) -> str:
        """As it was given."""
        return str(plugin.own_code["command"])

    def get_code_folder(self, plugin: Any) -> str:
        """Of its creator's files."""
        return str(plugin.own_code["code_folder"])


class NewPlugin(Strict):
    name = Name(max_length=100)
    version = Text(max_length=50, help_text="Once for each name.")
    command = Text(allow_blank=True, help_text="No shell reads it. `${output_dir}`, `${input_dir}` and parameters.")
    code_folder = Text(required=False, allow_blank=True, max_length=5000, help_text="Copied; the command starts in it.")
    image = Identifier(required=False, allow_null=True, help_text="Id of an image version; absent: the platform's own.")
    environment = AnyObject(required=False, help_text="`{NAME: value}`.")
    parameters = serializers.ListField(
        child=serializers.DictField(), required=False, max_length=100,
        help_text="`[{name, type: str int float or bool, default, required, choices, help}]`.",
    )  # fmt: skip
    output_file = Text(required=False, max_length=255, help_text="Below `${output_dir}`; default data.jsonl.")
    plugin_class = Text(required=False, allow_blank=True, max_length=100)
    provider = Text(required=False, allow_blank=True, max_length=100)
    description = Text(required=False, allow_blank=True, max_length=20_000)


class FetchView(NativeView):
    @operation("fetch_dataset_version", TAG, "Fetch a file from elsewhere as the next version", body=NewFetch,
               answer=DataTaskDetail, status=202, errors=(404, 409, 422), examples=(
                   OpenApiExample("From the web", {"source": "url", "location": "https://host.example/faq.jsonl"},
                                  request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request, dataset_id: UUID) -> Response:
        """A run fetches it; then every row is checked. Private addresses are refused, also behind redirects."""
        dataset = access_dataset(self.actor, dataset_id)
        return started(fetch_version(actor=self.actor, dataset=dataset, **self.body(NewFetch)))


class GenerateView(NativeView):
    @operation("generate_dataset_version", TAG, "Make the next version by a data plugin", body=NewPluginRun,
               answer=DataTaskDetail, status=202, errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, dataset_id: UUID) -> Response:
        """The plugin runs isolated; what it leaves is checked like any upload."""
        dataset = access_dataset(self.actor, dataset_id)
        return started(run_plugin(actor=self.actor, dataset=dataset, **self.body(NewPluginRun)))


class CountTokensView(NativeView):
    @operation("count_dataset_tokens", TAG, "Count a version's tokens under a model", body=NewTokenCount,
               answer=DataTaskDetail, status=202, errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, version_id: UUID) -> Response:
        """The count that there is already is answered again."""
        version = access_dataset_version(self.actor, version_id)
        return started(count_tokens(actor=self.actor, version=version, **self.body(NewTokenCount)))


class OverlapView(NativeView):
    @operation("measure_dataset_overlap", TAG, "Look for leakage and near duplicates", body=NewOverlap,
               answer=DataTaskDetail, status=202, errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, version_id: UUID) -> Response:
        """Rows that other splits or an evaluation set have too, exactly or nearly, with row numbers and samples."""
        version = access_dataset_version(self.actor, version_id)
        return started(measure_overlap(actor=self.actor, version=version, **self.body(NewOverlap)))


class DataTasksView(NativeView):
    @operation("list_data_tasks", TAG, "List data tasks", query=DataTaskFilters, page_of=DataTaskItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(tasks_of(self.actor, **self.filters(DataTaskFilters)), DataTaskItem)


class DataTaskView(NativeView):
    @operation("get_data_task", TAG, "A data task with what it found", answer=DataTaskDetail, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Its run's progress is under status."""
        return Response(DataTaskDetail(access_data_task(self.actor, task_id)).data)

    @operation("delete_data_task", TAG, "Delete a data task", status=204, errors=(404, 409))
    def delete(self, request: Request, task_id: UUID) -> Response:
        """A version that it made stays."""
        delete_data_task(actor=self.actor, task=access_data_task(self.actor, task_id))
        return Response(status=204)


class StopDataTaskView(NativeView):
    @operation("stop_data_task", TAG, "Stop a data task", body=None, answer=DataTaskDetail, errors=(404, 409))
    @idempotent()
    def post(self, request: Request, task_id: UUID) -> Response:
        """What it has fetched or made so far is gone."""
        self.body()
        task = stop_data_task(actor=self.actor, task=access_data_task(self.actor, task_id))
        return Response(DataTaskDetail(task).data)


class DataTaskRunView(RunView):
    """The run of a data task."""

    def run_of(self, object_id: Any) -> Run | None:
        """Raises NotFound."""
        return access_data_task(self.actor, object_id).run


class DataTaskStatusView(DataTaskRunView):
    @operation("get_data_task_status", TAG, "State and progress of a data task", answer=RunStatus, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of its run; bytes or rows."""
        return self.status(task_id)


class DataTaskLogView(DataTaskRunView):
    @operation("get_data_task_log", TAG, "The log of a data task", query=LogQuery, answer=Log, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """From a byte on."""
        return self.log(task_id)


class TokenLossView(NativeView):
    @operation("get_data_task_loss", TAG, "What a largest length would cost", query=LengthQuery, answer=Loss,
               errors=(404, 409))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> Response:
        """Of a finished count of tokens, for any length."""
        task = access_data_task(self.actor, task_id)
        return Response(lost_at(task, **self.query(LengthQuery)))


class PluginsView(NativeView):
    @operation("list_data_plugins", TAG, "List data plugins", page_of=PluginItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        self.filters()
        return self.page(plugins_of(self.actor), PluginItem)

    @operation("create_data_plugin", TAG, "Register a data plugin", body=NewPlugin, answer=PluginItem, status=201,
               errors=(404, 409), examples=(
                   OpenApiExample("A script", {
                       "name": "synthetic", "version": "1", "command": "python make.py --out ${output_dir}/data.jsonl",
                       "code_folder": "private/make", "parameters": [{"name": "rows", "type": "int", "default": 100}],
                   }, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Its runs have no network unless an operator allows it."""
        plugin = create_plugin(actor=self.actor, **self.body(NewPlugin))
        return Response(PluginItem(plugin).data, status=201)


class PluginView(NativeView):
    @operation("get_data_plugin", TAG, "A data plugin", answer=PluginItem, errors=(404,))
    def get(self, request: Request, plugin_id: UUID) -> Response:
        """With its declared parameters."""
        return Response(PluginItem(access_plugin(self.actor, plugin_id)).data)

    @operation("delete_data_plugin", TAG, "Forget a data plugin", status=204, errors=(404, 409))
    def delete(self, request: Request, plugin_id: UUID) -> Response:
        """Refused while data tasks name it."""
        delete_plugin(actor=self.actor, plugin=access_plugin(self.actor, plugin_id))
        return Response(status=204)


def started(task: DataTask) -> Response:
    """202 with the task."""
    return Response(DataTaskDetail(task).data, status=202)
