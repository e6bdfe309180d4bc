"""4. 调优任务 and 5. 预训练任务: the same routes, told apart by isPretrain."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.common.json_body import StrictJsonParser
from clavier.api.legacy.bodies.tuning import NewTask, custom_arguments, is_custom, system_arguments
from clavier.api.legacy.envelopes import TUNING
from clavier.api.legacy.errors import NOTHING_ELSE
from clavier.api.legacy.fields import Body, Id, Number, UserIs, Word
from clavier.api.legacy.paging import PageBody, PageData, page_of
from clavier.api.legacy.schema import operation
from clavier.api.legacy.shapes.tuning import TaskCreated, TaskDetail, created_of, detail_of, row_of
from clavier.api.legacy.states import in_state
from clavier.api.legacy.views import LegacyView
from clavier.api.legacy.words import say
from finetune_app.custom import create_custom_fine_tune_task
from finetune_app.models import FineTuneTask
from finetune_app.queries import tasks_of_all_tenants, visible_tasks
from finetune_app.services import access_fine_tune_task, create_fine_tune_task

TAG = "4 调优任务 / 5 预训练任务"


class TaskPage(PageBody):
    isPretrain = Number(high=1, help_text="是否是预训练：1 是 0 否 / 1: pretraining, 0: tuning; absent: both")
    status = Word(max_length=40, help_text="任务状态 / Pending, Running, Succeeded, Failed, Stopped")
    taskName = Word(max_length=200, help_text="任务名，包含即可 / part of the name")
    userId = UserIs(help_text="用户id；不填为本人 / the user; absent: yourself")


class AnyUser(UserIs):
    """A user to look for: an operator may name anyone, everybody else only themselves."""

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError (``identity_mismatch``)."""
        return (
            Id.to_internal_value(self, data) if self.context["person"].is_operator else super().to_internal_value(data)
        )


class ManagePage(TaskPage):
    userId = AnyUser(help_text="用户id；管理员可查任意用户 / operators may name anyone")
    userName = Word(max_length=150, help_text="用户名，包含即可 / part of the user's name")


class TaskId(Body):
    taskId = Id(required=True, help_text="大模型调优任务ID")


class TuningView(LegacyView):
    """Base of the views on tasks."""

    envelope = TUNING


class CreateTaskView(TuningView):
    @operation("createLlmFineTuneTask", TAG, "4.1 / 5.1 大模型调优（预训练）任务创建", TUNING, body=NewTask,
               data=TaskCreated(), errors=(404, 409, 422, 429))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Create a task and start it. Every field is kept and comes back in the detail."""
        values = self.read(NewTask)
        if is_custom(values):
            arguments, self.field_names = custom_arguments(self.actor, values)
            task = create_custom_fine_tune_task(actor=self.actor, claims_name=True, **arguments)
        else:
            arguments, self.field_names = system_arguments(self.actor, values)
            task = create_fine_tune_task(actor=self.actor, claims_name=True, **arguments)
        return self.answer(created_of(task), say("任务创建成功", "The task was created."))


class TaskListView(TuningView):
    @operation("listLlmFineTuneTask", TAG, "4.2 / 5.2 任务列表", TUNING, body=TaskPage, data=PageData())
    def post(self, request: Request) -> Response:
        """The caller's own tasks, newest first."""
        query = self.read(TaskPage)
        rows = filtered(visible_tasks(self.actor).filter(created_by_id=self.actor.user_id), query)
        return self.answer(page_of(rows, query, row_of), say("查询成功", "These are the tasks."))


class ManageListView(TuningView):
    @operation("listFineTuneTaskManage", TAG, "5.4 任务模型管理", TUNING, body=ManagePage, data=PageData())
    def post(self, request: Request) -> Response:
        """All tasks of the tenant; an operator sees those of all tenants."""
        query = self.read(ManagePage)
        rows = tasks_of_all_tenants(self.actor) if self.person.is_operator else visible_tasks(self.actor)
        rows = filtered(rows, query)
        if query.get("userId"):
            rows = rows.filter(named(query["userId"]))
        if query.get("userName"):
            rows = rows.filter(created_by__username__icontains=query["userName"])
        return self.answer(page_of(rows, query, row_of), say("查询成功", "These are the tasks."))


class TaskDetailView(TuningView):
    parser_classes = (StrictJsonParser, FormParser)
    field_names = {NOTHING_ELSE: "taskId"}

    @operation(
        "queryLlmFineTuneTaskDetail", TAG, "5.3 任务详情", TUNING, query=TaskId, data=TaskDetail(), errors=(404,)
    )
    def post(self, request: Request) -> Response:
        """``taskId`` is read from the query string, a form or a JSON body."""
        body: Any = request.data
        given = {**dict(body.items()), **request.query_params.dict()}
        task = access_fine_tune_task(self.actor, self.read(TaskId, given)["taskId"])
        return self.answer(detail_of(task), say("查询成功", "This is the task."))


def filtered(tasks: QuerySet[FineTuneTask], query: dict[str, Any]) -> QuerySet[FineTuneTask]:
    """The tasks that the filters leave. Raises Invalid for a status that is none."""
    if query.get("isPretrain") is not None:
        is_pretrain = Q(recipe="pretrain")
        tasks = tasks.filter(is_pretrain if query["isPretrain"] else ~is_pretrain)
    if query.get("status"):
        tasks = tasks.filter(in_state(query["status"]))
    if query.get("taskName"):
        tasks = tasks.filter(name__icontains=query["taskName"])
    return tasks


def named(user: str) -> Q:
    """Rows that the user of that id or name has made."""
    try:
        return Q(created_by_id=UUID(user))
    except ValueError:
        return Q(created_by__username=user)
