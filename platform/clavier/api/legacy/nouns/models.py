"""3. 模型管理: aiApplication is a registered model, aiApplicationVersion one of its versions."""

from __future__ import annotations

from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.legacy.bodies.models import NewApplication, arguments_of
from clavier.api.legacy.envelopes import MODELS
from clavier.api.legacy.fields import Body, Id, Number, UserIs, Word
from clavier.api.legacy.paging import PageBody, PageData, page_of
from clavier.api.legacy.schema import operation
from clavier.api.legacy.shapes.models import (
    FAILED,
    IMPORTING,
    STATUS,
    Application,
    ApplicationVersion,
    ListedVersion,
    application_of,
    listed_version_of,
    version_of,
)
from clavier.api.legacy.shapes.tuning import as_written
from clavier.api.legacy.views import LegacyView
from models_app.models import ModelVersion, RegisteredModel
from models_app.queries import visible_models, visible_versions
from models_app.registering import create_model_with_versions
from models_app.services import access_model, access_model_version

TAG = "3 模型管理"
FIELD_NAMES = {"model": "aiApplicationId", "model_version": "aiApplicationVersionId"}
OK = "success"


class ModelQuery(Body):
    """The filters there are; an empty text is no filter."""

    name = Word(help_text="模型名称，包含即可 / part of the name")
    type = Word(help_text="模型类型 / type")
    createUser = UserIs(help_text="创建人，只能是本人 / the creator: yourself")
    status = Number(
        IMPORTING, FAILED, help_text="1 导入中 2 导入完成 3 导入失败，以最新版本为准 / of the newest version"
    )


class ModelPage(PageBody):
    queryInfo = ModelQuery(required=False, allow_null=True)


class ModelId(Body):
    aiApplicationId = Id(required=True)


class VersionId(Body):
    aiApplicationVersionId = Id(required=True)


class ModelView(LegacyView):
    """Base of the views on models."""

    envelope = MODELS
    field_names = FIELD_NAMES


class HyperParameter(serializers.Serializer[Any]):
    """HyperParameterDTO."""

    paramName = serializers.CharField(allow_blank=True)
    type = serializers.CharField(allow_blank=True)
    value = serializers.CharField(allow_blank=True)
    valueRange = serializers.ListField(child=serializers.JSONField())
    edit = serializers.BooleanField()


class ApplicationCreated(serializers.Serializer[Any]):
    """AiApplicationDTO."""

    application = Application()
    aiApplicationVersionList = ApplicationVersion(many=True)
    hyperParameterList = HyperParameter(many=True)


class CreateModelView(ModelView):
    @operation("createAiApplication", TAG, "3.1 创建模型", MODELS, body=NewApplication, data=ApplicationCreated(),
               errors=(404, 409, 422, 507))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """A model with its versions, all or none; folders are taken over by runs (status 1 until they have ended)."""
        values = self.read(NewApplication)
        arguments, self.field_names = arguments_of(self.actor, values)
        model, versions = create_model_with_versions(actor=self.actor, **arguments)
        found = {
            "application": application_of(model),
            "aiApplicationVersionList": [version_of(version) for version in versions],
            "hyperParameterList": [declared_of(entry) for entry in values.get("hyperParameterList") or []],
        }
        return self.answer(found, OK)


class ModelListView(ModelView):
    @operation("getAiApplicationList", TAG, "3.2 分页获取模型列表", MODELS, body=ModelPage, data=PageData())
    def post(self, request: Request) -> Response:
        """The tenant's models, newest first."""
        query = self.read(ModelPage)
        rows = filtered(visible_models(self.actor), query.get("queryInfo", {}), self.actor.user_id)
        return self.answer(page_of(rows, query, application_of), OK)


class ModelDetailView(ModelView):
    @operation("getAiApplicationDetail", TAG, "3.3 查询模型详情", MODELS, query=ModelId, data=Application(),
               errors=(404,))  # fmt: skip
    def get(self, request: Request) -> Response:
        """With the number, size and newest of its versions."""
        query = self.read(ModelId, request.query_params.dict())
        return self.answer(application_of(access_model(self.actor, query["aiApplicationId"])), OK)


class VersionListView(ModelView):
    @operation("getAiApplicationVersionList", TAG, "3.4 获取模型下的所有版本", MODELS, query=ModelId,
               data=ListedVersion(many=True), errors=(404,))  # fmt: skip
    def get(self, request: Request) -> Response:
        """Newest first. Only here times are objects, as the document prints them."""
        query = self.read(ModelId, request.query_params.dict())
        model = access_model(self.actor, query["aiApplicationId"])
        versions = visible_versions(self.actor).filter(model=model).order_by("-number")
        return self.answer([listed_version_of(version) for version in versions], OK)


class VersionDetailView(ModelView):
    @operation("getAiApplicationVersionDetail", TAG, "3.5 获取模型版本详情", MODELS, query=VersionId,
               data=ApplicationVersion(), errors=(404,))  # fmt: skip
    def get(self, request: Request) -> Response:
        """One version."""
        query = self.read(VersionId, request.query_params.dict())
        return self.answer(version_of(access_model_version(self.actor, query["aiApplicationVersionId"])), OK)


def declared_of(entry: dict[str, Any]) -> dict[str, Any]:
    """One declared hyperparameter with all of its fields."""
    return {
        "paramName": entry.get("paramName", ""),
        "type": entry.get("type", ""),
        "value": as_written(entry.get("value", "")),
        "valueRange": entry.get("valueRange", []),
        "edit": entry.get("edit", True),
    }


def filtered(models: QuerySet[RegisteredModel], query: dict[str, Any], user_id: Any) -> QuerySet[RegisteredModel]:
    """The models that the filters leave."""
    if query.get("name"):
        models = models.filter(name__icontains=query["name"])
    if query.get("type"):
        models = models.filter(submitted__type=query["type"])
    if query.get("createUser"):
        models = models.filter(created_by_id=user_id)
    if query.get("status"):
        newest = ModelVersion.objects.filter(model=OuterRef("pk")).order_by("-number").values("state")[:1]
        states = [state for state, number in STATUS.items() if number == query["status"]]
        models = models.alias(newest_state=Subquery(newest)).filter(newest_state__in=states)
    return models
