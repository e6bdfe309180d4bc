"""Fine-tune tasks."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponse, HttpResponseBase
from django.utils.translation import gettext
from drf_spectacular.utils import OpenApiExample, PolymorphicProxySerializer, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.common.json_body import StrictJsonParser
from clavier.api.common.yaml_body import YAML_TYPE, YamlParser
from clavier.api.native.content import attach
from clavier.api.native.fields import (
    OPTIONS_HELP,
    YEAR_S,
    AnyObject,
    Choice,
    Flag,
    Form,
    Identifier,
    Name,
    Resources,
    StateChoice,
    Strict,
    Text,
    WholeNumber,
)
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.rewards import RewardService, with_reward
from clavier.api.native.run_parts import (
    STATES,
    RunSummary,
)
from clavier.api.native.schema import BINARY, operation
from clavier.api.native.views import NativeView
from clavier.core.errors import NotFound
from clavier.core.yaml_text import MAX_YAML_BYTES
from clavier.runs.doctor import ADVICE, shown
from finetune_app.doctor import examine_task
from finetune_app.from_config import create_from_config
from finetune_app.models import CREATE_WAYS, FineTuneTask
from finetune_app.queries import output_version, search_of, visible_tasks
from finetune_app.services import (
    access_fine_tune_task,
    create_fine_tune_task,
    delete_fine_tune_task,
    estimate_fine_tune_task,
    retry_fine_tune_task,
    start_fine_tune_task,
    stop_fine_tune_task,
)
from inference_app.queries import scoring_model
from runner.contract.knobs import RECIPES

TAG = "fine-tune tasks"
METHODS = tuple(sorted({method for methods in RECIPES.values() for method in methods}))
DIAGNOSES = tuple(ADVICE)
VERDICTS = ("fits", "tight", "will_not_fit")


class TaskItem(Owned):
    """A task in a list."""

    name = serializers.CharField()
    description = serializers.CharField()
    create_way = serializers.ChoiceField(CREATE_WAYS, help_text="system: a recipe; custom: the owner's own code.")
    recipe = serializers.ChoiceField(tuple(RECIPES), allow_blank=True, help_text="Of own code: pretrain, or empty.")
    method = serializers.ChoiceField(METHODS, allow_blank=True)
    base_model = Reference(source="base_version", allow_null=True, help_text="The model version that is tuned.")
    train_dataset = Reference(allow_null=True, help_text="A data set version; null: own code reads something else.")
    state = serializers.ChoiceField(
        STATES, source="run.state", read_only=True, default=None, allow_null=True,
        help_text="Of the newest run; null: saved, never started.",
    )  # fmt: skip
    run = RunSummary(allow_null=True, help_text="The newest run.")


class TaskDetail(TaskItem):
    """A task with all that it was made of and what it has made."""

    validation_dataset = Reference(allow_null=True)
    reward_model = Reference(source="reward_version", allow_null=True, help_text="Of rl: the version that scores.")
    tokenizer = serializers.CharField(help_text="Of a new model: its owner's file or folder; empty: a trained one.")
    image = Reference(source="image_version", allow_null=True, help_text="Of own code; null: the platform's own.")
    own_code = serializers.DictField(help_text="Of a custom task: its command, folders and environment.")
    hyperparameters = serializers.DictField(help_text="All of them, defaults filled in; of own code as written.")
    resources = serializers.DictField(help_text="`{cpu_milli, memory_mib, gpus}`.")
    options = serializers.DictField(help_text="Resource group, nodes, roles, priority; only what was asked for.")
    time_limit_s = serializers.IntegerField(allow_null=True)
    output_model_name = serializers.CharField(help_text="The model that gets a new version on success.")
    output_version = serializers.SerializerMethodField(help_text="The model version that the newest run has made.")
    has_config = serializers.SerializerMethodField(help_text="`GET .../config` answers the YAML that it was made from.")
    search = serializers.SerializerMethodField(help_text="The hyperparameter search whose trial it is.")

    def get_has_config(self, task: FineTuneTask) -> bool:
        """The text itself is a download."""
        return bool(task.config)

    @extend_schema_field(Reference(allow_null=True))
    def get_search(self, task: FineTuneTask) -> Any:
        """One query."""
        found = search_of(task)
        return Reference(found).data if found else None

    @extend_schema_field(Reference(allow_null=True))
    def get_output_version(self, task: FineTuneTask) -> Any:
        """One query."""
        made = output_version(task)
        return Reference(made).data if made else None


class TaskChanges(Strict):
    hyperparameters = serializers.DictField(required=False, help_text="Those that change.")
    resources = serializers.DictField(required=False, help_text="Those that change.")
    time_limit_s = WholeNumber(required=False, min_value=1, max_value=YEAR_S, help_text="Seconds.")
    method = Choice(METHODS, required=False, help_text="Another method of the recipe, such as qlora.")
    resume = Flag(
        required=False,
        help_text="Go on from the newest checkpoint where hyperparameters and number of GPUs did not change, as is the "
        "default; false: from the start.",
    )


class TaskRemedy(serializers.Serializer[Any]):
    reason = serializers.CharField(help_text="What it does, for people.")
    changes = serializers.DictField(help_text="The body of a retry.")


class TaskDiagnosis(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(DIAGNOSES, allow_null=True, help_text="What went wrong.")
    advice = serializers.CharField(allow_null=True)
    evidence = serializers.ListField(child=serializers.CharField(), help_text="Lines of the log that show it.")
    remedy = TaskRemedy(allow_null=True)


class TaskFilters(Form):
    state = StateChoice(STATES, required=False, help_text="Of the newest run.")
    search = Text(default="", allow_blank=True, max_length=200, help_text="Text in the name or description.")


class NewTask(Strict):
    name = Name(max_length=100)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    recipe = Choice(tuple(RECIPES), help_text="`GET /recipes` lists them; docs/programs.md says what each needs.")
    method = Choice(METHODS, help_text="`GET /recipes` lists which recipe has which.")
    train_dataset = Identifier(help_text="Id of a data set version.")
    validation_dataset = Identifier(required=False, allow_null=True, help_text="Id of a data set version.")
    base_model = Identifier(
        required=False, allow_null=True, help_text="Id of a full model version. Required, except for pretrain."
    )
    reward_model = Identifier(
        required=False, allow_null=True, help_text="Of rl with reward_function reward_model: id of a reward version."
    )
    reward_service = RewardService()
    tokenizer = Text(
        required=False, max_length=5000, help_text="Of a new model: your tokenizer.json, tokenizer.model or folder."
    )
    hyperparameters = AnyObject(required=False, help_text="`GET /recipes/{recipe}/{method}` tells which there are.")
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Seconds; absent: 7 days.")
    output_model_name = Text(required=False, max_length=100, help_text="Absent: the task's name.")
    start = Flag(default=True, help_text="false: only save it.")


class ConfiguredTask(Strict):
    """A task as a YAML training configuration; what stands beside it wins over the file."""

    config = Text(required=False, max_length=MAX_YAML_BYTES, help_text="The YAML: `task_type: sft` ...")
    config_file = Text(
        required=False, max_length=5000, help_text="Instead: a file of yours, `private/configs/sft.yaml`."
    )
    name = Name(required=False, max_length=100, help_text="Absent: the file's, else made of recipe and model.")
    description = Text(required=False, allow_blank=True, max_length=20_000)
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Seconds; absent: 7 days.")
    output_model_name = Text(required=False, max_length=100, help_text="Absent: the task's name.")
    start = Flag(default=True, help_text="false: only save it.")


TASK_ORDER = PolymorphicProxySerializer(
    component_name="TaskOrder", serializers=[NewTask, ConfiguredTask], resource_type_field_name=None
)


class EstimateOrder(Strict):
    recipe = Choice(tuple(RECIPES))
    method = Choice(METHODS)
    train_dataset = Identifier(help_text="Id of a data set version.")
    base_model = Identifier(required=False, allow_null=True, help_text="Id of a full model version.")
    reward_model = Identifier(required=False, allow_null=True, help_text="Of rl: id of the version that scores.")
    reward_service = RewardService()
    tokenizer = Text(required=False, max_length=5000, help_text="Of a new model: a file or folder of yours.")
    hyperparameters = AnyObject(required=False)
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)


class Range(serializers.Serializer[Any]):
    low = serializers.FloatField()
    expected = serializers.FloatField()
    high = serializers.FloatField()


class TaskEstimate(serializers.Serializer[Any]):
    """What a task will need."""

    verdict = serializers.ChoiceField(
        VERDICTS, allow_null=True, help_text="null: the model's configuration, or the size of the GPU, is not known."
    )
    memory_mib = Range(allow_null=True, help_text="Of the GPU when there is one, else of the machine.")
    seconds = Range(allow_null=True)
    disk_mib = Range(allow_null=True)
    tokens = serializers.IntegerField(allow_null=True, help_text="Read in all epochs.")
    tokens_range = Range(allow_null=True, help_text="Narrow where a tokenizer has counted, wide where bytes were.")
    steps = serializers.IntegerField(allow_null=True, help_text="Optimizer steps.")
    limit_mib = serializers.IntegerField(allow_null=True, help_text="What the task asks for. null: unknown.")
    on_gpu = serializers.BooleanField(allow_null=True)
    num_calibrating_runs = serializers.IntegerField(allow_null=True, help_text="Finished runs that corrected it.")
    change = serializers.DictField(
        allow_null=True,
        help_text="Hyperparameters, method, memory_mib: the smallest change that makes it fit.",
    )


class EstimateView(NativeView):
    @operation("estimate_fine_tune_task", TAG, "What a task would need", body=EstimateOrder, answer=TaskEstimate,
               errors=(404,))  # fmt: skip
    def post(self, request: Request) -> Response:
        """Nothing is stored. A task whose lower bound is above what it asks for is refused when it is created."""
        found = estimate_fine_tune_task(actor=self.actor, **with_reward(self.actor, self.body(EstimateOrder)))
        nothing = dict.fromkeys(TaskEstimate().fields)
        return Response(TaskEstimate(found.as_json() if found else nothing).data)


class TasksView(NativeView):
    parser_classes = (StrictJsonParser, YamlParser)

    @operation("list_fine_tune_tasks", TAG, "List fine-tune tasks", query=TaskFilters, page_of=TaskItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(visible_tasks(self.actor, **self.filters(TaskFilters)), TaskItem)

    @operation("create_fine_tune_task", TAG, "Create a fine-tune task, and start it", body=TASK_ORDER, raw=YAML_TYPE,
               answer=TaskDetail, status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("LoRA", {
                       "name": "faq-lora", "recipe": "sft", "method": "lora",
                       "base_model": "6b1f7c1e-5f3a-4a52-9f0e-0d1f2a3b4c5d",
                       "train_dataset": "0f8fad5b-d9cb-469f-a165-70867728950e",
                       "hyperparameters": {"learning_rate": 0.0002, "num_train_epochs": 3, "lora_r": 16},
                   }, request_only=True, media_type="application/json"),
                   OpenApiExample("A file of yours", {"config_file": "private/configs/sft.yaml"}, request_only=True,
                                  media_type="application/json"),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Every hyperparameter is checked before anything is stored.

        With `config`, `config_file`, or a body of YAML, the task is the one that the training configuration
        describes. Its names are those of models and data sets, `name@2`, ids, or paths (`datasets/faq.jsonl`). Where
        it enables `hyperparameter_tuning` a search is made, and the answer is the task of its first trial.
        """
        if "config" in request.data or "config_file" in request.data:
            task = create_from_config(actor=self.actor, find_scorer=scoring_model, **self.body(ConfiguredTask))
        else:
            task = create_fine_tune_task(actor=self.actor, **with_reward(self.actor, self.body(NewTask)))
        return Response(TaskDetail(task).data, status=201)


class TaskView(NativeView):
    @operation("get_fine_tune_task", TAG, "A fine-tune task", answer=TaskDetail, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """With its newest run and the model version it made."""
        return Response(TaskDetail(access_fine_tune_task(self.actor, task_id)).data)

    @operation("delete_fine_tune_task", TAG, "Delete a task with its runs and logs", status=204, errors=(404, 409))
    def delete(self, request: Request, task_id: UUID) -> Response:
        """Refused while it runs or its model version exists."""
        delete_fine_tune_task(actor=self.actor, task=access_fine_tune_task(self.actor, task_id))
        return Response(status=204)


class TaskConfigView(NativeView):
    @operation("download_fine_tune_task_config", TAG, "Download the YAML that a task was made from", answer=BINARY,
               media_type=YAML_TYPE, errors=(404,))  # fmt: skip
    def get(self, request: Request, task_id: UUID) -> HttpResponseBase:
        """As it was written."""
        task = access_fine_tune_task(self.actor, task_id)
        if not task.config:
            raise NotFound("The task was not made from a YAML configuration.", code="no_config")
        response = HttpResponse(task.config)
        attach(response, f"{task.name}.yaml", f"{YAML_TYPE}; charset=utf-8")
        return response


class StartTaskView(NativeView):
    @operation("start_fine_tune_task", TAG, "Start a task that was only saved", answer=TaskDetail,
               errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, task_id: UUID) -> Response:
        """A task is started once; afterwards it can be retried."""
        self.body()
        task = start_fine_tune_task(actor=self.actor, task=access_fine_tune_task(self.actor, task_id))
        return Response(TaskDetail(task).data)


class StopTaskView(NativeView):
    @operation("stop_fine_tune_task", TAG, "Stop a task's run", answer=TaskDetail, errors=(400, 404, 409))
    def post(self, request: Request, task_id: UUID) -> Response:
        """The state is STOPPING until the program has ended."""
        self.body()
        task = stop_fine_tune_task(actor=self.actor, task=access_fine_tune_task(self.actor, task_id))
        return Response(TaskDetail(task).data)


class RetryTaskView(NativeView):
    @operation("retry_fine_tune_task", TAG, "Run a failed or stopped task again", body=TaskChanges, answer=TaskDetail,
               errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, task_id: UUID) -> Response:
        """A new run; the old one stays. What the body names is changed first, such as a remedy's `changes`.

        A recipe goes on from the newest checkpoint that a run with the same hyperparameters has sealed.
        """
        changes = self.body(TaskChanges)
        task = access_fine_tune_task(self.actor, task_id)
        return Response(TaskDetail(retry_fine_tune_task(actor=self.actor, task=task, **changes)).data)


class DiagnosisView(NativeView):
    @operation("diagnose_fine_tune_task", TAG, "Why a task failed, and what helps", answer=TaskDiagnosis, errors=(404,))
    def get(self, request: Request, task_id: UUID) -> Response:
        """All null for a task whose newest run has not failed."""
        found = examine_task(access_fine_tune_task(self.actor, task_id))
        if found is None:
            return Response({"kind": None, "advice": None, "evidence": [], "remedy": None})
        diagnosis, remedy = found
        proposal = {"reason": gettext(remedy.reason), "changes": remedy.as_json()} if remedy else None
        return Response({**shown(diagnosis), "remedy": proposal})
