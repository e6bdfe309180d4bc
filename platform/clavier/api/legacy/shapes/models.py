"""aiApplication and aiApplicationVersion as the document types them, from models and their versions."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.fields import as_text
from clavier.api.legacy.shapes.ends import error_of
from clavier.api.legacy.times import time_of, timestamp_of
from clavier.api.legacy.words import translated
from models_app.models import ModelVersion, RegisteredModel
from models_app.queries import deploy_json_of

IMPORTING, IMPORTED, FAILED = 1, 2, 3
STATUS = {"importing": IMPORTING, "ready": IMPORTED, "failed": FAILED}
FROM_TRAINING, FROM_IMAGE, FROM_FILES = 1, 2, 3
SOURCE = {"fine_tune": FROM_TRAINING, "image": FROM_IMAGE}
OBJECT_STORAGE, LOCAL_STORAGE = 1, 2
#: What the client wrote of a version and nothing here derives.
_TEXTS = (
    "configPath", "image", "label", "llmFineTuneTaskId", "modelStructure", "preDeployLabel", "scale",
    "softVersion", "trainTaskVersionId", "use",
)  # fmt: skip
_NUMBERS = ("configSaveType", "framework", "frameworkStyle", "imageType")
PARAMETER_STATUS = {"importing": 1, "ready": 2, "failed": 0}
_STATUS_HELP = "1 导入中 2 导入完成 3 导入失败 / importing, imported, failed"


class Application(serializers.Serializer[Any]):
    """AiApplication."""

    id = serializers.CharField(help_text="application_uuid")
    name = serializers.CharField(help_text="模型名称")
    description = serializers.CharField(allow_blank=True, help_text="模型简要描述")
    type = serializers.CharField(allow_blank=True, help_text="模型类型")
    developer = serializers.CharField(allow_blank=True, help_text="模型厂商")
    createUser = serializers.CharField(help_text="创建人")
    userName = serializers.CharField(help_text="用户名称")
    loginUser = serializers.IntegerField(
        help_text="创建人 0为管理员，1为普通用户；不参与鉴权 / never read for authority"
    )
    createTime = serializers.CharField(help_text="创建时间 yyyy-MM-dd HH:mm:ss")
    modifiedTime = serializers.CharField(help_text="修改时间")
    isDelete = serializers.IntegerField(help_text="是否删除 1为已删除 0为未删除")
    aiApplicationVersionsCount = serializers.IntegerField(help_text="ai应用版本数")
    aiApplicationVersionsSize = serializers.FloatField(help_text="所有版本大小，单位kB")
    latestVersion = serializers.CharField(allow_null=True, help_text="ai应用最新版本")
    status = serializers.IntegerField(allow_null=True, help_text=_STATUS_HELP)


class ApplicationVersion(serializers.Serializer[Any]):
    """AiApplicationVersion."""

    id = serializers.CharField(help_text="version_uuid")
    applicationId = serializers.CharField(help_text="AI应用id")
    applicationName = serializers.CharField(help_text="AI应用名称")
    version = serializers.CharField(help_text="AI应用版本")
    description = serializers.CharField(allow_blank=True, help_text="描述")
    createUser = serializers.CharField(help_text="创建人")
    userName = serializers.CharField(help_text="用户名称")
    loginUser = serializers.IntegerField(help_text="创建人 0为管理员，1为普通用户；不参与鉴权")
    createTime = serializers.CharField(help_text="创建时间 yyyy-MM-dd HH:mm:ss")
    modifiedTime = serializers.CharField(help_text="修改时间")
    isDelete = serializers.IntegerField(help_text="是否删除 1为已删除 0为未删除")
    status = serializers.IntegerField(help_text=_STATUS_HELP)
    source = serializers.IntegerField(help_text="1 训练结果 2 自定义镜像 3 本地文件")  # type: ignore[assignment]
    saveType = serializers.IntegerField(help_text="存储类别 1.对象存储 2.本地存储")
    savePath = serializers.CharField(allow_blank=True, help_text="存储路径")
    absolutePath = serializers.CharField(allow_blank=True, help_text="AI应用文件路径")
    hideSourcePath = serializers.CharField(allow_blank=True, help_text="平台内的存储路径")
    message = serializers.CharField(allow_blank=True, help_text="导入失败的原因 / why the import failed")
    size = serializers.FloatField(help_text="大小，单位kB")
    fromMarket = serializers.IntegerField(help_text="是否从模型市场导入")
    metrics = serializers.CharField(allow_blank=True, help_text="AI应用性能参数（JSON）")
    hyperParameterList = serializers.CharField(allow_blank=True, help_text="超参信息（JSON）")
    parameters = serializers.CharField(allow_blank=True, help_text="经过解析的模型参数（JSON）")
    originalParameters = serializers.CharField(allow_blank=True, help_text="未解析的模型参数（JSON）")
    configPath = serializers.CharField(allow_blank=True, help_text="配置文件存储路径")
    deployJson = serializers.CharField(allow_blank=True, help_text="模型目录中 deploy.json 的内容")
    image = serializers.CharField(allow_blank=True, help_text="镜像地址")
    label = serializers.CharField(allow_blank=True, help_text="标签")  # type: ignore[assignment]
    llmFineTuneTaskId = serializers.CharField(allow_blank=True, help_text="大模型微调id")
    trainTaskVersionId = serializers.CharField(allow_blank=True, help_text="训练版本id")
    modelStructure = serializers.CharField(allow_blank=True, help_text="模型结构")
    preDeployLabel = serializers.CharField(allow_blank=True, help_text="模型预部署时起pod的唯一标识")
    scale = serializers.CharField(allow_blank=True, help_text="参数规模")
    softVersion = serializers.CharField(allow_blank=True, help_text="软件及版本")
    use = serializers.CharField(allow_blank=True, help_text="用途")
    configSaveType = serializers.IntegerField(allow_null=True, help_text="配置文件存储类别 1.对象存储 2.本地存储")
    framework = serializers.IntegerField(allow_null=True, help_text="框架选择")
    frameworkStyle = serializers.IntegerField(allow_null=True, help_text="模型格式")
    imageType = serializers.IntegerField(allow_null=True, help_text="镜像类型 0 推理框架适配镜像 1 自定义镜像")
    parameterStatus = serializers.IntegerField(help_text="模型参数获取状态 0 未获取 1 获取中 2 获取完成")


class Timestamp(serializers.Serializer[Any]):
    """A time as an object: month from 0, year from 1900, time in ms."""

    date = serializers.IntegerField()
    day = serializers.IntegerField()
    hours = serializers.IntegerField()
    minutes = serializers.IntegerField()
    month = serializers.IntegerField()
    nanos = serializers.IntegerField()
    seconds = serializers.IntegerField()
    time = serializers.IntegerField()
    timezoneOffset = serializers.IntegerField()
    year = serializers.IntegerField()


class ListedVersion(ApplicationVersion):
    """AiApplicationVersion in 3.4, where the document prints times as objects."""

    createTime = Timestamp()  # type: ignore[assignment]
    modifiedTime = Timestamp()  # type: ignore[assignment]


def application_of(model: RegisteredModel) -> dict[str, Any]:
    """One model with what its versions add up to."""
    versions = list(model.versions.order_by("number"))
    newest = versions[-1] if versions else None
    wrote = model.submitted
    return {
        "id": str(model.pk),
        "name": model.name,
        "description": model.description,
        "type": wrote.get("type", "LLM"),
        "developer": wrote.get("developer", ""),
        **person_of(model),
        "createTime": time_of(model.created_at),
        "modifiedTime": time_of(model.updated_at),
        "isDelete": 0,
        "aiApplicationVersionsCount": len(versions),
        "aiApplicationVersionsSize": sum(version.size_bytes for version in versions) / 1024,
        "latestVersion": version_name(newest) if newest else None,
        "status": STATUS[newest.state] if newest else None,
    }


def version_of(version: ModelVersion) -> dict[str, Any]:
    """One version; no path of the server is in it."""
    wrote, facts = version.submitted, version.facts
    declared = version.model.submitted.get("hyperParameterList") or [
        {"paramName": one["name"], "type": one["type"], "value": one["value"], "valueRange": one["range"],
         "edit": one["is_editable"]}
        for one in version.declarations
    ]  # fmt: skip
    return {
        "id": str(version.pk),
        "applicationId": str(version.model_id),
        "applicationName": version.model.name,
        "version": version_name(version),
        "description": wrote.get("description", ""),
        **person_of(version),
        "createTime": time_of(version.created_at),
        "modifiedTime": time_of(version.updated_at),
        "isDelete": 0,
        "status": STATUS[version.state],
        "source": SOURCE.get(version.source, FROM_FILES),
        "saveType": wrote.get("saveType") or (OBJECT_STORAGE if version.source == "s3" else LOCAL_STORAGE),
        "savePath": wrote.get("savePath", version.location),
        "absolutePath": version.location,
        "hideSourcePath": f"/models/{version.pk}" if version.state == "ready" else "",
        "size": version.size_bytes / 1024,
        "fromMarket": int(version.source in ("huggingface", "modelscope")),
        "metrics": as_text(version.metrics),
        "hyperParameterList": as_text(declared),
        "parameters": as_text({name: facts[name] for name in sorted(facts) if not isinstance(facts[name], dict)}),
        "originalParameters": as_text(facts),
        **{name: wrote.get(name, "") for name in _TEXTS},
        **{name: wrote.get(name) for name in _NUMBERS},
        "deployJson": deploy_json_of(version),
        "parameterStatus": PARAMETER_STATUS[version.state],
        "message": translated(error_of(version.run) or "note", version.message) if version.message else "",
        "llmFineTuneTaskId": wrote.get("llmFineTuneTaskId") or task_id_of(version),
        "scale": wrote.get("scale") or scale_of(version),
        "preDeployLabel": wrote.get("preDeployLabel") or version.pk.hex,
    }


def listed_version_of(version: ModelVersion) -> dict[str, Any]:
    """The same with times as objects."""
    times = {"createTime": timestamp_of(version.created_at), "modifiedTime": timestamp_of(version.updated_at)}
    return {**version_of(version), **times}


def person_of(owned: RegisteredModel | ModelVersion) -> dict[str, Any]:
    """Who made it."""
    user = owned.created_by
    return {"createUser": str(user.pk), "userName": user.username, "loginUser": 0 if user.is_staff else 1}


def version_name(version: ModelVersion) -> str:
    """The version's name as its client wrote it, else its number."""
    return str(version.submitted.get("version") or version.number)


def task_id_of(version: ModelVersion) -> str:
    """The fine-tuning task that made the version; an imported output has its task in its location."""
    if version.source != "fine_tune" or version.run is None:
        return ""
    return version.location if version.run.kind == "model_import" else str(version.run.subject_id)


def scale_of(version: ModelVersion) -> str:
    """How many parameters the model has, as people write it: ``7.6B``."""
    number = version.num_parameters
    if not number:
        return ""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"
