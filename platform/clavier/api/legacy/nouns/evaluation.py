"""6. 模型评估: the user's own program judges a model."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.legacy.bodies.evaluation import FIELD_NAMES, NewEvaluation, arguments_of
from clavier.api.legacy.envelopes import EVALUATION
from clavier.api.legacy.fields import UserIs, Word
from clavier.api.legacy.paging import PageBody, PageData, page_of
from clavier.api.legacy.schema import operation
from clavier.api.legacy.shapes.evaluation import EvaluationCreated, EvaluationDetail, detail_of, row_of
from clavier.api.legacy.states import in_state
from clavier.api.legacy.views import LegacyView
from clavier.api.legacy.words import say
from evaluation_app.custom import create_custom_evaluation_task
from evaluation_app.queries import visible_evaluations
from evaluation_app.services import access_evaluation_task

TAG = "6 模型评估"


class EvaluationPage(PageBody):
    userId = UserIs(help_text="用户Id；不填为本人")
    status = Word(max_length=40, help_text="模型评估任务状态，空为全部")
    taskName = Word(max_length=200, help_text="模型评估任务名，包含即可，空为全部")


class EvaluationView(LegacyView):
    """Base of the views on evaluations."""

    envelope = EVALUATION
    field_names = FIELD_NAMES


class CreateEvaluationView(EvaluationView):
    @operation("createEvaluationTask", TAG, "6.1 创建模型评估任务", EVALUATION, body=NewEvaluation,
               data=EvaluationCreated(), errors=(404, 409, 422, 429))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Create an evaluation and start it."""
        values = self.read(NewEvaluation)
        task = create_custom_evaluation_task(actor=self.actor, **arguments_of(self.actor, values))
        return self.answer({"id": str(task.pk)}, say("创建模型评估任务成功", "The evaluation was created."))


class EvaluationPageView(EvaluationView):
    @operation("pageEvaluationTask", TAG, "6.2 查看模型评估任务列表", EVALUATION, body=EvaluationPage, data=PageData())
    def post(self, request: Request) -> Response:
        """The caller's own evaluations, newest first."""
        query = self.read(EvaluationPage)
        rows = visible_evaluations(self.actor, search=query.get("taskName", ""))
        rows = rows.filter(created_by_id=self.actor.user_id)
        if query.get("status"):
            rows = rows.filter(in_state(query["status"]))
        return self.answer(page_of(rows, query, row_of), "success")


class EvaluationDetailView(EvaluationView):
    @operation("detailEvaluationTask", TAG, "6.3 查看模型评估任务详情", EVALUATION, data=EvaluationDetail(),
               errors=(404,))  # fmt: skip
    def get(self, request: Request, taskId: str) -> Response:
        """With what the evaluation found."""
        return self.answer(detail_of(access_evaluation_task(self.actor, taskId)), "success")
