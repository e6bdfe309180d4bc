"""The request for an evaluation, and the service's arguments that it means."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.fields import Body, Id, OneOf, Place, UserIs, Word
from clavier.api.legacy.groups import GROUP_FIELDS, group_name
from clavier.api.legacy.paths import location_of, place_of
from clavier.api.legacy.requests import (
    ContainerResource,
    Variables,
    data_place,
    differs,
    environment_of,
    image_argument,
    refuse_two_origins,
    resource_names,
    resources_of,
    without_secrets,
)
from clavier.api.legacy.words import say
from clavier.core.actor import Actor
from datasets_app.queries import newest_version_named, version_or_newest
from models_app.services import access_model_version

MAX_COMMAND = 100_000
FIELD_NAMES = {
    "code_folder": "workDir",
    "data_folder": "inputDir",
    "model_folder": "modelDir",
    "output_folder": "outputDir",
    "dataset_version": "datasetId",
    "model_version": "aiAppVersionId",
    "environment": "env",
    "image_version": "image",
    "resources": "resource",
    "resource_group": "resourceGroupName",
    "options.resource_group": "resourceGroupName",
    "task": "taskId",
    **resource_names("resource"),
}
_FOLDERS = {
    "code_folder": "workDir",
    "output_folder": "outputDir",
}


class NewEvaluation(Body):
    """The fields of 6.1."""

    name = Word(required=True, max_length=100, help_text="模型评估任务名")
    image = Word(required=True, max_length=500, help_text="镜像 name:tag 或其ID；platform：平台自带环境")
    command = Word(
        required=True,
        max_length=MAX_COMMAND,
        help_text="运行命令，可用 ${model_dir} ${output_dir} 等占位符",
    )
    outputDir = Place(required=True, help_text="模型评估结果输出目录")
    resource = ContainerResource(required=True, help_text="模型评估资源申请")
    resourceGroupId = Id(help_text="资源组Id；不填为默认资源组")
    resourceGroupName = Word(max_length=63, help_text="资源组名称")
    resourceGroupKey = Word(max_length=100, help_text="资源组key")
    inputType = OneOf(("local", "dataset"), help_text="数据集来源 local / dataset")
    inputDir = Place(help_text="数据集路径，或 s3://存储名/桶/前缀")
    storageMedium = OneOf(("1201", "1203"), help_text="inputDir 的位置：1201 本地，1203 对象存储")
    datasetId = Id(help_text="数据集Id或数据集版本Id")
    datasetName = Word(max_length=200, help_text="数据集名字")
    modelType = OneOf(("local", "aiApp"), help_text="模型来源 local / aiApp")
    modelDir = Place(help_text="模型输入路径，或 s3://存储名/桶/前缀")
    aiAppVersionId = Id(help_text="AI应用版本ID")
    aiAppVersionName = Word(max_length=300, help_text="AI应用名称、版本信息")
    workDir = Place(help_text="评估脚本所在目录")
    env = Variables(help_text='环境变量 [{"A": "1"}]')
    description = Word(help_text="描述信息")
    userId = UserIs(help_text="用户Id；不填为本人")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Raises ValidationError for data or a model that is given twice, or in another way than was said."""
        refuse_two_origins(attrs, "inputType", "inputDir", ("datasetId", "datasetName"))
        refuse_two_origins(attrs, "modelType", "modelDir", ("aiAppVersionId", "aiAppVersionName"))
        if attrs.get("aiAppVersionName") and not attrs.get("aiAppVersionId"):
            message = say("填写 aiAppVersionName 时必填", "aiAppVersionName is only shown; the version needs its id.")
            raise serializers.ValidationError({"aiAppVersionId": message}, code="required")
        return attrs


def arguments_of(actor: Actor, values: dict[str, Any]) -> dict[str, Any]:
    """The service's arguments. Raises Invalid, NotFound."""
    group = group_name(actor, values, GROUP_FIELDS)
    folders = {name: location_of(values.get(field, ""), field=field) for name, field in _FOLDERS.items()}
    return {
        **folders,
        "data_folder": data_place(values),
        "model_folder": place_of(values.get("modelDir", ""), field="modelDir"),
        "name": values["name"],
        "description": values.get("description", ""),
        "command": values["command"],
        "image": image_argument(actor, values["image"]),
        "environment": environment_of(values.get("env") or []),
        "dataset_version": dataset_of(actor, values),
        "model_version": model_of(actor, values),
        "resources": resources_of(values["resource"], FIELD_NAMES),
        "options": {"resource_group": group} if group else {},
        "submitted": submitted_of(values),
    }


def dataset_of(actor: Actor, values: dict[str, Any]) -> str | None:
    """The data set version: of an id of either kind, or the newest one of a name. Raises NotFound, Invalid."""
    name = values.get("datasetName")
    if values.get("datasetId"):
        version = version_or_newest(actor, values["datasetId"], field="datasetId")
        if name and name != version.dataset.name:
            raise differs("datasetName", name, "datasetId", version.dataset.name)
        return str(version.pk)
    if name:
        return str(newest_version_named(actor, name, field="datasetName").pk)
    return None


def model_of(actor: Actor, values: dict[str, Any]) -> str | None:
    """The id of the model version. Raises NotFound; Invalid where the name beside it is not that model's."""
    version_id, name = values.get("aiAppVersionId"), values.get("aiAppVersionName")
    if version_id and name:
        version = access_model_version(actor, version_id, field="aiAppVersionId")
        # The document has no grammar for "name and version", so the name must be in it and the rest is free.
        if version.model.name not in name:
            raise differs("aiAppVersionName", name, "aiAppVersionId", str(version))
    return version_id or None


def submitted_of(values: dict[str, Any]) -> dict[str, Any]:
    """The request as it is kept: secrets masked, the user left to the credential."""
    kept = {name: value for name, value in values.items() if name != "userId"}
    if "env" in kept:
        kept["env"] = without_secrets(kept["env"])
    return kept
