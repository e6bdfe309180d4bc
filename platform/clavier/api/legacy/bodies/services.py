"""modelServerDTO: a service and its versions, and what of it the service function is told."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.fields import Body, Id, Number, OneOf, Place, Structure, UserIs, Word
from clavier.api.legacy.groups import GROUP_FIELDS, group_name
from clavier.api.legacy.paths import location_of
from clavier.api.legacy.requests import (
    DOCUMENT_NAMES,
    GPU_SHARES,
    Variables,
    environment_of,
    image_argument,
    refuse_gpus_that_are_none,
    resources_of,
    without_secrets,
)
from clavier.api.legacy.words import say
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, Unprocessable, quoted

MAX_COMMAND = 100_000
METRICS = {1: "requests_per_second", 2: "concurrency", 3: "gpu_utilization"}
_PERSON = ("createUser", "userName")
#: A service's name of a field of a version -> the document's.
_NAMES = {
    "model_version": "aiApplicationVersionId",
    "image": "image",
    "command": "command",
    "environment": "envs",
    "hyperparameters": "hyperParameterList",
    "image_ports": "imagePorts",
    "volume_path": "volumePath",
    "request_method": "reqMethod",
    "traffic_percent": "rate",
    "num_replicas": "replica",
    "min_replicas": "predictMinReplicas",
    "max_replicas": "predictMaxReplicas",
    "scale_on": "metric",
    "scale_threshold": "monitorThreshold",
    "options.resource_group": "resourceGroupName",
    "resource_group": "resourceGroupName",
    **{f"resources.{name}": {"cpuNumber": "cpu", "gpuNum": "gpu"}.get(field, field)
       for name, (field, _) in DOCUMENT_NAMES.items()},
}  # fmt: skip


class ServerBody(Body):
    """ModelServer."""

    name = Word(required=True, max_length=63, help_text="服务名称：小写字母、数字和 -")
    description = Word(help_text="描述")
    path = Word(max_length=1000, help_text="模型服务版本内部访问路径")
    createUser = UserIs(help_text="创建人id；不填为本人")
    userName = Word(max_length=150, help_text="创建人名称")


class ServerVersionBody(Body):
    """ModelServerVersion."""

    aiApplicationVersionId = Id(help_text="AI应用版本id")
    rate = Number(high=100, help_text="流量比例，各版本之和为 100；只有一个版本时默认 100")
    rates = Structure(list, help_text="流量比例列表，原样保存；以各版本的 rate 为准")
    cpu = Number(help_text="cpu数量（核）")
    memory = Number(help_text="内存（GiB）")
    gpu = Number(help_text="gpu数量")
    gpuCores = Number(high=100, help_text="gpu算力（百分比）")
    gpuMem = Number(help_text="gpu显存（GiB）")
    gpuShare = OneOf(GPU_SHARES, help_text="gpu类型 none 整卡，share 或 vgpu 共享，mig 切分")
    migRes = Word(max_length=40, help_text="gpu切割")
    replica = Number(1, 64, help_text="实例数")
    predictMinReplicas = Number(high=64, help_text="最小实例数")
    predictMaxReplicas = Number(1, 64, help_text="最大实例数")
    metric = Number(1, 3, help_text="扩缩容依据 1.rps 2.concurrency 3.GPU使用率")
    monitorThreshold = Number(1, 1_000_000, help_text="监控指标的数字值，默认 100")
    reqMethod = OneOf(("rest", "grpc"), help_text="请求方式 rest 和 grpc；grpc 只能保存")
    image = Word(max_length=500, help_text="镜像 name:tag 或其ID；platform 为平台自带的推理服务")
    customImageFlag = Number(high=1, help_text="判断模型文件类型")
    command = Word(max_length=MAX_COMMAND, help_text="执行命令")
    imagePorts = Word(max_length=200, help_text="容器暴露的端口列表，逗号分隔，例如 5050")
    envs = Variables(help_text='环境变量，JSON 字符串或数组：[{"A":"1"}]')
    volumes = Structure(list, help_text='文件挂载，JSON 字符串或数组：[{"src":"/lightgbm","dst":"/dd"}]')
    volumePath = Place(help_text="外部挂载目录")
    hyperParameterList = Structure(list, help_text='超参配置，JSON 字符串或数组；"null" 为无')
    resourceGroupId = Id(help_text="资源组id")
    resourceGroupName = Word(max_length=63, help_text="资源组名称")
    resourceGroupKey = Word(max_length=100, help_text="资源组key值")
    modelServerId = Id(help_text="模型服务主id；新建时不填")
    createUser = UserIs(help_text="服务创建人；不填为本人")
    userName = Word(max_length=150, help_text="服务创建人")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Raises ValidationError for a range of replicas that is none, and for GPU fields that do not go together."""
        fewest, most = attrs.get("predictMinReplicas"), attrs.get("predictMaxReplicas")
        if fewest is not None and most is not None and fewest > most:
            message = say(
                f"predictMinReplicas {fewest} 大于 predictMaxReplicas {most}",
                f"predictMinReplicas {fewest} is more than predictMaxReplicas {most}.",
            )
            raise serializers.ValidationError({"predictMinReplicas": message}, code="out_of_range")
        refuse_gpus_that_are_none(attrs, count="gpu")
        return attrs


class NewServer(Body):
    """ModelServerDTO."""

    modelServer = ServerBody(required=True)
    modelServerVersions = ServerVersionBody(many=True, required=True, allow_empty=False)


def arguments_of(actor: Actor, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The service's arguments, and the name of each of its fields in the request.

    Raises Invalid, NotFound, Unprocessable.
    """
    given = values["modelServerVersions"]
    names = {"name": "modelServer.name", "traffic_percent": "modelServerVersions", "versions": "modelServerVersions"}
    versions = []
    for number, version in enumerate(given):
        place = f"modelServerVersions[{number}]"
        versions.append(version_arguments(actor, version, place, is_alone=len(given) == 1))
        names |= {f"versions[{number}].{name}": f"{place}.{field}" for name, field in _NAMES.items()}
        names |= {f"versions[{number}]": place, f"versions[{number}].resources": place}
    server = values["modelServer"]
    arguments = {
        "name": server["name"],
        "description": server.get("description", ""),
        "submitted": {name: value for name, value in server.items() if name not in _PERSON},
        "versions": versions,
    }
    return arguments, names


def version_arguments(actor: Actor, values: dict[str, Any], place: str, *, is_alone: bool) -> dict[str, Any]:
    """What the service is told of one version. Raises Invalid, NotFound, Unprocessable."""
    if values.get("modelServerId"):
        message = say("新建服务时不能指定已有服务", "a new service can not belong to another one; leave it out.")
        raise spoken(Unprocessable(f"{place}.modelServerId: {message}", field=f"{place}.modelServerId"))
    group = group_name(actor, values, GROUP_FIELDS)
    gpu = {name: values.get(name) for name in ("gpuCores", "gpuMem", "gpuShare", "migRes")}
    resource = {"cpuNumber": values.get("cpu"), "memory": values.get("memory")}
    names = {name: f"{place}.{field}" for name, field in _NAMES.items()}
    found = {
        "model_version": values.get("aiApplicationVersionId") or None,
        "image": image_argument(actor, values.get("image", ""), field=f"{place}.image"),
        "command": values.get("command", ""),
        "environment": environment_of(values.get("envs") or []),
        "hyperparameters": hyperparameters_of(values, place),
        "image_ports": ports_of(values.get("imagePorts", ""), place),
        "volumes": volumes_of(values, place),
        "volume_path": location_of(values.get("volumePath", ""), field=f"{place}.volumePath"),
        "request_method": values.get("reqMethod", ""),
        "traffic_percent": values.get("rate", 100 if is_alone else 0),
        "num_replicas": values.get("replica"),
        "min_replicas": values.get("predictMinReplicas"),
        "max_replicas": values.get("predictMaxReplicas"),
        "scale_on": METRICS.get(values.get("metric", 0), ""),
        "scale_threshold": values.get("monitorThreshold"),
        "resources": resources_of({**resource, "gpuResource": {**gpu, "gpuNum": values.get("gpu")}}, names),
        "options": {"resource_group": group} if group else {},
        "submitted": submitted_of(values),
    }
    return {name: value for name, value in found.items() if value is not None}


def ports_of(text: str, place: str) -> list[int]:
    """The ports of a list with commas. Raises Invalid (``out_of_range``)."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and len(word) <= 5 and 1 <= int(word) <= 65_535 for word in words):
        message = say(
            f"{place}.imagePorts {quoted(text, 60)} 须为 1-65535 的端口，以逗号分隔",
            f"{place}.imagePorts {quoted(text, 60)}: ports from 1-65535 are needed, with commas between them.",
        )
        raise spoken(Invalid(message, code="out_of_range", field=f"{place}.imagePorts"))
    return [int(word) for word in words]


def volumes_of(values: dict[str, Any], place: str) -> list[dict[str, str]]:
    """Folders of the user's files and where the container sees them. Raises Invalid."""
    found = []
    for number, volume in enumerate(values.get("volumes") or []):
        field = f"{place}.volumes[{number}]"
        if not isinstance(volume, dict) or set(volume) != {"src", "dst"}:
            message = say(f"{field} 须为 {{src, dst}}", f"{field} needs {{src, dst}}.")
            raise spoken(Invalid(message, code="wrong_type", field=field))
        source = location_of(str(volume["src"]), field=f"{field}.src")
        found.append({"src": source, "dst": str(volume["dst"])})
    return found


def hyperparameters_of(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Name -> value of the declared hyperparameters. Raises Invalid."""
    found = {}
    for number, entry in enumerate(values.get("hyperParameterList") or []):
        name = (entry.get("paramName") or entry.get("name")) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            field = f"{place}.hyperParameterList[{number}]"
            message = say(f"{field} 须为 {{paramName, value}}", f"{field} needs {{paramName, value}}.")
            raise spoken(Invalid(message, code="wrong_type", field=field))
        found[name] = entry.get("value", "")
    return found


def submitted_of(values: dict[str, Any]) -> dict[str, Any]:
    """The version as it is kept: secrets masked, the user left to the credential."""
    kept = {name: value for name, value in values.items() if name not in _PERSON}
    if "envs" in kept:
        kept["envs"] = without_secrets(kept["envs"])
    return kept
