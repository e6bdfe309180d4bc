"""7. 推理服务: modelServer is a service, modelServerVersion one of its versions."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.legacy.bodies.services import NewServer, arguments_of
from clavier.api.legacy.envelopes import MODELS
from clavier.api.legacy.errors import NOTHING_ELSE, spoken
from clavier.api.legacy.fields import Body, Id, UserIs, Word
from clavier.api.legacy.paging import PageBody, PageData, page_of
from clavier.api.legacy.schema import operation
from clavier.api.legacy.shapes.services import ServerDetail, VersionInstances, detail_of, instances_of, server_of
from clavier.api.legacy.views import LegacyView
from clavier.api.legacy.words import say
from clavier.core.errors import Invalid
from inference_app.queries import access_service_version, visible_services
from inference_app.services import access_service, create_service

TAG = "7 推理服务"
OK = "success"
ERRORS = (404, 409, 422, 429)


class ServerCriteria(Body):
    createUser = UserIs(help_text="创建人；不填为本人")
    name = Word(max_length=63, help_text="服务名称，包含即可")


class ServerPage(PageBody):
    queryCriteria = ServerCriteria(required=False, allow_null=True)


class ServerId(Body):
    id = Id(help_text="服务id")
    modelServerId = Id(help_text="同 id")


class ServerVersionId(Body):
    id = Id(help_text="版本id")
    modelServerVersionId = Id(help_text="同 id")


class ServerView(LegacyView):
    """Base of the views on services."""

    envelope = MODELS
    field_names = {NOTHING_ELSE: "id"}

    def create(self, *, start: bool) -> Response:
        """A service with its versions, started or only saved."""
        arguments, self.field_names = arguments_of(self.actor, self.read(NewServer))
        service = create_service(actor=self.actor, start=start, **arguments)
        return self.shown(service.pk)

    def shown(self, service_id: Any) -> Response:
        """The service in full."""
        return self.answer(detail_of(visible_services(self.actor).get(pk=service_id)), OK)

    def the_id(self, form: type[Body], other: str) -> str:
        """The id of the body, under either name. Raises Invalid (``required``)."""
        values = self.read(form)
        found = values.get("id") or values.get(other)
        if not found:
            raise spoken(Invalid(say("id: 必填", "id: this field is required."), code="required", field="id"))
        return str(found)


class CreateServerView(ServerView):
    @operation("createModelInferenceServer", TAG, "7.1 创建推理服务", MODELS, body=NewServer, data=ServerDetail(),
               errors=ERRORS)  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Create a service and start it."""
        return self.create(start=True)


class SaveServerView(ServerView):
    @operation("createModelServer", TAG, "7.2 保存模型服务", MODELS, body=NewServer, data=ServerDetail(),
               errors=ERRORS)  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Save a service without starting it."""
        return self.create(start=False)


class ServerPageView(ServerView):
    @operation("findModelServerPageList", TAG, "7.3 分页查询模型服务", MODELS, body=ServerPage, data=PageData())
    def post(self, request: Request) -> Response:
        """The caller's own services, newest first."""
        query = self.read(ServerPage)
        rows = visible_services(self.actor, search=query.get("queryCriteria", {}).get("name", ""))
        rows = rows.filter(created_by_id=self.actor.user_id)
        return self.answer(page_of(rows, query, server_of), OK)


class ServerByIdView(ServerView):
    @operation("findModelServerById", TAG, "7.4 根据id查询模型服务", MODELS, body=ServerId, data=ServerDetail(),
               errors=(404,))  # fmt: skip
    def post(self, request: Request) -> Response:
        """One service with its versions."""
        return self.shown(access_service(self.actor, self.the_id(ServerId, "modelServerId")).pk)


class VersionByIdView(ServerView):
    @operation("findModelServerVersionById", TAG, "7.5 查询模型版本实例", MODELS, body=ServerVersionId,
               data=VersionInstances(), errors=(404,))  # fmt: skip
    def post(self, request: Request) -> Response:
        """One version with its instances."""
        version = access_service_version(self.actor, self.the_id(ServerVersionId, "modelServerVersionId"))
        return self.answer(instances_of(version), OK)
