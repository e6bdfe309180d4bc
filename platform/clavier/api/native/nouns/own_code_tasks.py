"""Fine-tune tasks of the user's own code, and the registration of what a task made."""

from __future__ import annotations

from uuid import UUID

from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import (
    OPTIONS_HELP,
    YEAR_S,
    AnyObject,
    Flag,
    Identifier,
    Name,
    OwnCodeFields,
    Resources,
    Strict,
    Text,
    WholeNumber,
)
from clavier.api.native.nouns.fine_tune_tasks import TAG, TaskDetail
from clavier.api.native.nouns.models import ModelVersionDetail
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from finetune_app.custom import create_custom_fine_tune_task
from finetune_app.registration import register_task_output
from finetune_app.services import access_fine_tune_task


class NewCustomTask(OwnCodeFields):
    name = Name(max_length=100)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    method = Text(required=False, allow_blank=True, max_length=10, help_text="lora, qlora or full: told to the script.")
    is_pretrain = Flag(default=False, help_text="It makes a base model.")
    profile_path = Text(
        required=False, allow_blank=True, max_length=5000,
        help_text="A config.json of your files with commonHyperParameters and fineTuneHyperParameters.",
    )  # fmt: skip
    hyperparameters = AnyObject(required=False, help_text="They win over the profile's.")
    train_dataset = Identifier(required=False, allow_null=True, help_text="Id of a data set version.")
    validation_dataset = Identifier(required=False, allow_null=True, help_text="Id of a data set version.")
    base_model = Identifier(required=False, allow_null=True, help_text="Id of a model version.")
    checkpoint_folder = Text(required=False, allow_blank=True, max_length=5000, help_text="Gets the checkpoints.")
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Seconds; absent: 7 days.")
    output_model_name = Text(required=False, max_length=100, help_text="Absent: the task's name.")
    start = Flag(default=True, help_text="false: only save it.")


class NewTaskModel(Strict):
    name = Text(max_length=100, help_text="A known model's name gets a further version.")
    subfolder = Text(required=False, allow_blank=True, max_length=1000, help_text="Of the output; absent: found.")
    description = Text(required=False, allow_blank=True, max_length=20_000)
    declarations = serializers.ListField(
        child=serializers.DictField(), required=False, max_length=100,
        help_text="What may be set later: `[{name, type: int float bool or str, value, range, is_editable}]`.",
    )  # fmt: skip


class CustomTasksView(NativeView):
    @operation("create_custom_fine_tune_task", TAG, "Tune with your own code", body=NewCustomTask, answer=TaskDetail,
               status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("A script", {
                       "name": "my-lora", "command": "python train.py --data ${input_dir} --out ${output_dir}",
                       "code_folder": "private/code", "data_folder": "private/data", "model_folder": "private/model",
                       "profile_path": "private/config/LoRA/config.json", "output_folder": "private/out",
                   }, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """The command is split into words and started without a shell."""
        task = create_custom_fine_tune_task(actor=self.actor, **self.body(NewCustomTask))
        return Response(TaskDetail(task).data, status=201)


class RegisterOutputView(NativeView):
    @operation("register_fine_tune_task_output", TAG, "Register what a task made as a model version",
               body=NewTaskModel, answer=ModelVersionDetail, status=201, errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, task_id: UUID) -> Response:
        """A run imports and checks it; tasks of a recipe register their output by themselves."""
        task = access_fine_tune_task(self.actor, task_id)
        version = register_task_output(actor=self.actor, task=task, **self.body(NewTaskModel))
        return Response(ModelVersionDetail(version).data, status=201)
