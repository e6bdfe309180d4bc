"""createTaskBO: the 62 fields of a fine-tuning request, and the service's arguments that they mean."""

from __future__ import annotations

import shlex
from typing import Any

from rest_framework import serializers

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.fields import Body, Id, Number, OneOf, Place, Structure, UserIs, Word, Words, YesNo
from clavier.api.legacy.groups import group_name
from clavier.api.legacy.paths import location_of, place_of
from clavier.api.legacy.requests import (
    OBJECT_MEDIUM,
    HyperParameter,
    NodeResource,
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
from clavier.core.errors import Invalid, Unprocessable, quoted
from clavier.images.access import parse_id
from clavier.runs.options import ROLE_NAMES
from datasets_app.queries import access_dataset_version, newest_version_named
from finetune_app.profile import METHOD_OF_STRATEGY, read_profile
from models_app.queries import version_named
from models_app.services import access_model_version

METHODS = METHOD_OF_STRATEGY
MAX_COMMAND = 100_000
#: The document's fields -> the service's, where a refusal of the service has another name.
FIELD_NAMES = {
    "base_model": "modelVersionId",
    "model_version": "modelVersionId",
    "train_dataset": "datasetVersionId",
    "dataset_version": "datasetVersionId",
    "description": "describe",
    "method": "fineTuneStrategy",
    "recipe": "algorithmId",
    "output_model_name": "name",
    "resources": "resource",
    "command": "command",
    "code_folder": "workingDir",
    "data_folder": "inputDir",
    "model_folder": "originModelDir",
    "output_folder": "outputDir",
    "checkpoint_folder": "checkPointDir",
    "profile_path": "profilePath",
    "environment": "variable",
    "image_version": "image",
    "resource_group": "zoneName",
    "options.resource_group": "zoneName",
    "options.node_names": "nodeName",
    "node_names": "nodeName",
    "options.priority": "priority",
    "options.roles": "resource",
    "roles": "resource",
    "hyperparameters": "commonHyperParameters",
    **resource_names("resource[0]"),
}
#: What a recipe of the platform decides itself; each belongs to a program of the user's.
_CUSTOM_ONLY = (
    "originModelDir", "inputDir", "outputDir", "checkPointDir", "workingDir", "image", "commands", "mpiCommand",
    "variable",
)  # fmt: skip
#: A program is written once, and a recipe has its own.
_EXCLUDE_EACH_OTHER = (
    ("command", "algorithmId"), ("commands", "algorithmId"), ("mpiCommand", "algorithmId"),
    ("command", "commands"), ("command", "mpiCommand"), ("commands", "mpiCommand"),
)  # fmt: skip
_FOLDERS = {
    "code_folder": "workingDir",
    "output_folder": "outputDir",
    "checkpoint_folder": "checkPointDir",
    "profile_path": "profilePath",
}


class NewTask(Body):
    """createTaskBO."""

    name = Word(required=True, max_length=100, help_text="任务名称")
    describe = Word(help_text="任务描述")
    createWay = OneOf(("custom", "system"), help_text="创建方式：custom 自定义，system 预置；默认按 image/command 判断")
    isPretrain = Number(high=1, help_text="1 预训练，0 调优（默认）")
    fineTuneStrategy = OneOf(tuple(METHODS), help_text="微调策略 LoRA / QLoRA / FineTune")
    algorithmId = Id(max_length=20, help_text="预置算法ID，即配方名 sft、pretrain …；见 GET /api/v1/recipes")
    commonHyperParameters = HyperParameter(many=True, required=False, allow_null=True, help_text="通用超参数")
    fineTuneHyperParameters = HyperParameter(many=True, required=False, allow_null=True, help_text="微调超参数")
    hyperparameter = Structure(dict, help_text="超参数（JSON 对象或其字符串）；列表中的同名项优先")
    profilePath = Place(help_text="用户自定义配置文件 config.json；显式参数优先")

    modelId = Id(help_text="模型ID")
    modelVersion = Id(max_length=100, help_text="模型版本")
    modelVersionId = Id(help_text="模型版本ID")
    originModelDir = Place(help_text="原始模型目录，或 s3://存储名/桶/前缀")
    inputType = OneOf(("local", "dataset"), help_text="数据集类型 local / dataset")
    storageMedium = OneOf(("1201", "1203"), help_text="inputDir 的位置：1201 本地，1203 对象存储")
    datasetVersionId = Id(help_text="数据集版本id")
    dataSetName = Word(max_length=200, help_text="数据集名称")
    inputDir = Place(help_text="数据集输入目录，含 train、validate、test；或 s3://存储名/桶/前缀")
    outputDir = Place(help_text="训练模型输出目录")
    checkPointDir = Place(help_text="checkPoint保存目录")
    workingDir = Place(help_text="脚本工作目录")

    image = Word(max_length=500, help_text="镜像")
    command = Word(max_length=MAX_COMMAND, help_text="运行命令，可用 ${model_dir} 等占位符，不经过 shell")
    commands = Words(text_length=MAX_COMMAND, help_text="运行命令的各个参数")
    mpiCommand = Word(max_length=MAX_COMMAND, help_text="mpiCommand")
    variable = Variables(help_text='环境变量 [{"A": "1"}]')
    type = OneOf(("TensorFlow", "PyTorch", "scikit-learn", "MPI"), help_text="任务类型")
    llmTrainFramework = OneOf(("PyTorch",), help_text="大模型训练基础框架类型")

    resource = NodeResource(many=True, required=False, allow_null=True, help_text="每种节点的资源")
    resourceType = OneOf(("标准模式", "进阶模式"), help_text="运行模式 标准模式 / 进阶模式")
    zoneId = Id(help_text="资源组ID")
    zoneName = Word(max_length=63, help_text="资源组名")
    resourceGroupKey = Word(max_length=100, help_text="资源组key")
    nodeName = Words(help_text="指定节点")
    priority = Id(max_length=20, help_text="优先级，整数，越大越先 / -100 to 100")
    isUrgentTask = YesNo(help_text="是否紧急任务")
    rdma = YesNo(help_text="是否开启高性能网络")
    resourceName = Word(max_length=200, help_text="rdma资源名称")
    devices = Word(help_text="设备")
    jobName = Word(max_length=200, help_text="作业名")
    podDelete = Number(high=1, help_text="结束后删除容器")
    userId = UserIs(help_text="用户ID；不填为本人")
    userName = Word(max_length=150, help_text="用户名")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Raises ValidationError for fields that contradict each other."""
        for one, other in _EXCLUDE_EACH_OTHER:
            if attrs.get(one) and attrs.get(other):
                both = say(f"{one} 与 {other} 不能同时填写", f"{one} and {other} are both given; send one.")
                raise serializers.ValidationError({one: both}, code="conflicting_fields")
        refuse_two_origins(attrs, "inputType", "inputDir", ("datasetVersionId", "dataSetName"))
        if attrs.get("modelVersion") and not (attrs.get("modelId") or attrs.get("modelVersionId")):
            message = say("填写 modelVersion 时必填", "modelVersion is a version of a model; name the model.")
            raise serializers.ValidationError({"modelId": message}, code="required")
        return attrs


def is_custom(values: dict[str, Any]) -> bool:
    """The request runs the user's own program: it says so, or it brings one."""
    if values.get("createWay"):
        return bool(values["createWay"] == "custom")
    return any(values.get(name) for name in ("command", "commands", "mpiCommand", "image"))


def system_arguments(actor: Actor, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of a recipe's task, and the name of each of its fields in the request.

    Raises Invalid, NotFound, Unprocessable.
    """
    refuse_what_is_missing_here(values)
    if values.get("storageMedium") == OBJECT_MEDIUM:
        message = say(
            "storageMedium 1203 仅适用于 createWay=custom 的 inputDir；预置算法使用数据集版本",
            "storageMedium 1203 goes with inputDir and createWay=custom; a recipe reads a data set version.",
        )
        raise spoken(Unprocessable(message, field="storageMedium"))
    if values.get("type") not in (None, "", "PyTorch"):
        message = say(
            "预置算法均为 PyTorch，其他类型请使用 createWay=custom",
            "a recipe is PyTorch; others go with createWay=custom.",
        )
        raise spoken(Unprocessable(f"type: {message}", field="type"))
    for name in _CUSTOM_ONLY:
        if values.get(name):
            message = say(
                f"{name} 仅适用于 createWay=custom；预置算法使用平台的数据集与模型版本，结果保存为模型版本",
                f"{name} goes with createWay=custom: a recipe reads data set and model versions and makes a version.",
            )
            raise spoken(Unprocessable(message, field=name))
    given, names = hyperparameters_of(values)
    hyperparameters = {**profile_of(actor, values), **given}
    fold_saving(hyperparameters)
    recipe = values.get("algorithmId") or ("pretrain" if values.get("isPretrain") else "sft")
    if values.get("isPretrain") and recipe != "pretrain":
        message = say(f"isPretrain 1 与 algorithmId {recipe} 冲突", f"isPretrain 1 contradicts algorithmId {recipe}.")
        raise spoken(Invalid(message, code="conflicting_fields", field="isPretrain"))
    strategy = values.get("fineTuneStrategy", "")
    arguments = {
        **shared_arguments(actor, values),
        "recipe": recipe,
        "method": METHODS.get(strategy, "full" if recipe == "pretrain" else "lora"),
        "train_dataset": dataset_of(actor, values) or required("datasetVersionId"),
        "base_model": model_of(actor, values),
        "hyperparameters": hyperparameters,
    }
    if sum(role.get("numbers") or 1 for role in values.get("resource") or []) > 1:
        message = say("预置算法只使用一个节点", "a recipe uses one container; several go with createWay=custom.")
        raise spoken(Unprocessable(f"resource: {message}", field="resource"))
    return arguments, {**FIELD_NAMES, **names}


def custom_arguments(actor: Actor, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of a task of the user's own program, and the name of each of its fields in the request.

    Raises Invalid, NotFound, Unprocessable.
    """
    refuse_what_is_missing_here(values)
    if values.get("algorithmId"):
        message = say("algorithmId 仅适用于预置算法，与自定义代码冲突", "algorithmId is a recipe; own code has none.")
        raise spoken(Invalid(message, code="conflicting_fields", field="algorithmId"))
    hyperparameters, names = hyperparameters_of(values)
    folders = {name: location_of(values.get(field, ""), field=field) for name, field in _FOLDERS.items()}
    arguments = {
        **shared_arguments(actor, values),
        **folders,
        "data_folder": data_place(values),
        "model_folder": place_of(values.get("originModelDir", ""), field="originModelDir"),
        "command": command_of(values),
        "image": image_argument(actor, values.get("image", "")),
        "method": METHODS.get(values.get("fineTuneStrategy", ""), ""),
        "is_pretrain": bool(values.get("isPretrain")),
        "hyperparameters": hyperparameters,
        "environment": environment_of(values.get("variable") or []),
        "train_dataset": dataset_of(actor, values) or None,
        "base_model": model_of(actor, values),
    }
    roles = roles_of(values)
    if roles:
        arguments["options"]["roles"] = roles
    return arguments, {**FIELD_NAMES, **names, **role_names(roles)}


def shared_arguments(actor: Actor, values: dict[str, Any]) -> dict[str, Any]:
    """What both ways have: names, resources, where and when to run, the request as it was written."""
    options: dict[str, Any] = {}
    group = group_name(actor, values)
    if group:
        options["resource_group"] = group
    if values.get("nodeName"):
        options["node_names"] = values["nodeName"]
    if values.get("priority"):
        options["priority"] = whole(values["priority"], field="priority")
    if values.get("isUrgentTask") is not None:
        options["is_urgent"] = values["isUrgentTask"]
    return {
        "name": values["name"],
        "description": values.get("describe", ""),
        "resources": resources_of((values.get("resource") or [{}])[0], FIELD_NAMES),
        "options": options,
        "submitted": submitted_of(values),
    }


def refuse_what_is_missing_here(values: dict[str, Any]) -> None:
    """Raises Unprocessable for what is understood and can not be had, so that nothing is dropped in silence."""
    if values.get("rdma"):
        message = say("rdma: 没有配备 RDMA 设备的节点，请填写 false", "rdma: no node has an RDMA device; send false.")
        raise spoken(Unprocessable(message, field="rdma"))


def command_of(values: dict[str, Any]) -> str:
    """The one command that the request has. Raises Invalid (``conflicting_fields``)."""
    if values.get("commands"):
        return shlex.join(values["commands"])
    return str(values.get("command") or values.get("mpiCommand") or "")


def roles_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a multi-node task; empty for one container."""
    nodes = values.get("resource") or []
    if sum(node.get("numbers") or 1 for node in nodes) <= 1:
        return []
    return [
        {
            "name": node.get("nodeType") or ("worker" if number else "master"),
            "count": node.get("numbers") or 1,
            "resources": resources_of(node, resource_names(f"resource[{number}]")),
        }
        for number, node in enumerate(nodes)
    ]


def role_names(roles: list[dict[str, Any]]) -> dict[str, str]:
    """What the service calls each role, as it was written and as it runs (a master first), -> the request's name."""
    found: dict[str, str] = {}
    as_run = sorted(range(len(roles)), key=lambda number: ROLE_NAMES.index(roles[number]["name"]))
    for rank, number in enumerate(as_run):
        node = f"resource[{number}]"
        for place in (f"options.roles[{number}]", f"roles.{rank}"):
            found |= {place: node, f"{place}.name": f"{node}.nodeType", f"{place}.count": f"{node}.numbers"}
            found |= {f"{place}.resources": node}
            found |= {f"{place}.{name}": field for name, field in resource_names(node).items()}
    return found


def dataset_of(actor: Actor, values: dict[str, Any]) -> str:
    """The data set version: by id, or the newest one of a name. Raises NotFound; Invalid where the two differ."""
    version_id, name = values.get("datasetVersionId"), values.get("dataSetName")
    if version_id and name:
        version = access_dataset_version(actor, version_id, field="datasetVersionId")
        if name != version.dataset.name:
            raise differs("dataSetName", name, "datasetVersionId", version.dataset.name)
    if version_id:
        return str(version_id)
    return str(newest_version_named(actor, name, field="dataSetName").pk) if name else ""


def model_of(actor: Actor, values: dict[str, Any]) -> str | None:
    """The model version: by id, or by its model and name. Raises NotFound; Invalid where id and names differ."""
    version_id, model_id, name = (values.get(field) for field in ("modelVersionId", "modelId", "modelVersion"))
    if version_id and (model_id or name):
        version = access_model_version(actor, version_id, field="modelVersionId")
        if model_id and parse_id(model_id) != version.model_id:
            raise differs("modelId", model_id, "modelVersionId", str(version.model_id))
        if name and name not in (str(version.number), version.submitted.get("version")):
            raise differs("modelVersion", name, "modelVersionId", str(version.number))
    if version_id:
        return str(version_id)
    return str(version_named(actor, model_id, name or "", field="modelId").pk) if model_id else None


def profile_of(actor: Actor, values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of the user's config.json; its strategy stands where the request has none."""
    location = location_of(values.get("profilePath", ""), field="profilePath")
    if not location:
        return {}
    profile = read_profile(actor, location, field="profilePath")
    if profile.method and not values.get("fineTuneStrategy"):
        strategies = {method: strategy for strategy, method in METHODS.items()}
        values["fineTuneStrategy"] = strategies[profile.method]
    return dict(profile.values)


def fold_saving(hyperparameters: dict[str, Any]) -> None:
    """A recipe saves every ``save_steps`` steps, so ``save_strategy`` says no more than whether. Raises Invalid."""
    strategy = hyperparameters.pop("save_strategy", None)
    if strategy == "no":
        hyperparameters["save_steps"] = 0
    elif strategy not in (None, "", "steps"):
        given = f"save_strategy {quoted(strategy, 60)}"
        message = say(f"{given} 不是 steps, no 之一", f"{given} is none of steps, no.")
        raise spoken(Invalid(message, code="not_a_choice", field="commonHyperParameters"))


def hyperparameters_of(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> value from both lists and the object, and where each was written. Raises Invalid (``duplicate_key``)."""
    listed: set[str] = set()
    found = dict(values.get("hyperparameter") or {})
    places = {f"hyperparameters.{name}": f"hyperparameter.{name}" for name in found}
    for part in ("commonHyperParameters", "fineTuneHyperParameters"):
        for number, entry in enumerate(values.get(part) or []):
            if entry.get("name"):
                if entry["name"] in listed:
                    message = say(f"{quoted(entry['name'])} 重复", f"gives {quoted(entry['name'])} a second time.")
                    field = f"{part}[{number}]"
                    raise spoken(Invalid(f"{field}: {message}", code="duplicate_key", field=field))
                listed.add(entry["name"])
                found[entry["name"]] = entry.get("value")
                places[f"hyperparameters.{entry['name']}"] = f"{part}[{number}]"
    return found, places


def submitted_of(values: dict[str, Any]) -> dict[str, Any]:
    """The request as it is kept: secrets masked, the user left to the credential."""
    kept = {name: value for name, value in values.items() if name != "userId"}
    if "variable" in kept:
        kept["variable"] = without_secrets(kept["variable"])
    return kept


def whole(text: str, *, field: str) -> int:
    """A whole number in a text. Raises Invalid (``wrong_type``)."""
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        message = say(f"{field} {quoted(text, 60)} 须为整数", f"{field} {quoted(text, 60)} is no whole number.")
        raise spoken(Invalid(message, code="wrong_type", field=field))
    return int(text)


def required(field: str) -> str:
    """Raises Invalid (``required``)."""
    raise spoken(Invalid(say(f"{field}: 必填", f"{field}: this field is required."), code="required", field=field))
