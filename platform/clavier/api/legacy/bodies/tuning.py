"""createTaskBO: the 62 fields of a fine-tuning request, and the service's arguments that they mean."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.fields import Body, Id, Number, OneOf, Structure, UserIs, Word, Words, YesNo
from clavier.api.legacy.requests import HyperParameter, NodeResource, Variables, resources_of, without_secrets
from clavier.api.legacy.words import say
from clavier.core.errors import Unprocessable

METHODS = {"LoRA": "lora", "QLoRA": "qlora", "FineTune": "full"}
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
    profilePath = Word(max_length=4096, help_text="用户自定义配置文件 config.json；显式参数优先")

    modelId = Id(help_text="模型ID")
    modelVersion = Id(max_length=100, help_text="模型版本")
    modelVersionId = Id(help_text="模型版本ID")
    originModelDir = Word(max_length=4096, help_text="原始模型目录")
    inputType = OneOf(("local", "dataset"), help_text="数据集类型 local / dataset")
    storageMedium = OneOf(("1201", "1203"), help_text="1201 本地，1203 对象存储")
    datasetVersionId = Id(help_text="数据集版本id")
    dataSetName = Word(max_length=200, help_text="数据集名称")
    inputDir = Word(max_length=4096, help_text="数据集输入目录，含 train、validate、test")
    outputDir = Word(max_length=4096, help_text="训练模型输出目录")
    checkPointDir = Word(max_length=4096, help_text="checkPoint保存目录")
    workingDir = Word(max_length=4096, help_text="脚本工作目录")

    image = Word(max_length=500, help_text="镜像")
    command = Word(max_length=MAX_COMMAND, help_text="运行命令，可用 ${model_dir} 等占位符，不经过 shell")
    commands = Words(text_length=MAX_COMMAND, help_text="运行命令的各个参数")
    mpiCommand = Word(max_length=MAX_COMMAND, help_text="mpiCommand")
    variable = Variables(help_text='环境变量 [{"A": "1"}]')
    type = OneOf(("TensorFlow", "PyTorch", "scikit-learn", "MPI"), help_text="任务类型")
    llmTrainFramework = OneOf(("PyTorch",), help_text="大模型训练基础框架类型")

    resource = NodeResource(many=True, required=False, allow_null=True, help_text="每种节点的资源")
    resourceType = Word(max_length=40, help_text="运行模式 标准模式 / 进阶模式")
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
        if attrs.get("command") and attrs.get("algorithmId"):
            both = say("command 与 algorithmId 不能同时填写", "command and algorithmId are both given; send one.")
            raise serializers.ValidationError({"command": both}, code="conflicting_fields")
        return attrs


def arguments_of(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The service's arguments, and the name of each of its fields in the request. Raises Unprocessable."""
    refuse_what_is_missing_here(values)
    recipe = values.get("algorithmId") or ("pretrain" if values.get("isPretrain") else "sft")
    method = METHODS.get(values.get("fineTuneStrategy", ""), "full" if recipe == "pretrain" else "lora")
    hyperparameters, names = hyperparameters_of(values)
    resource = values.get("resource") or [{}]
    arguments = {
        "name": values["name"],
        "description": values.get("describe", ""),
        "recipe": recipe,
        "method": method,
        "train_dataset": values.get("datasetVersionId", ""),
        "base_model": values.get("modelVersionId") or None,
        "hyperparameters": hyperparameters,
        "resources": resources_of(resource[0]),
        "submitted": submitted_of(values),
    }
    return arguments, {**FIELD_NAMES, **names}


def refuse_what_is_missing_here(values: dict[str, Any]) -> None:
    """Raises Unprocessable for what is understood and can not be had, so that nothing is dropped in silence."""
    if values.get("rdma"):
        raise Unprocessable("rdma: no node of this installation has an RDMA device. Send false.", field="rdma")


def hyperparameters_of(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> value from both lists and the object, and where each was written."""
    found = dict(values.get("hyperparameter") or {})
    places = {f"hyperparameters.{name}": f"hyperparameter.{name}" for name in found}
    for part in ("commonHyperParameters", "fineTuneHyperParameters"):
        for number, entry in enumerate(values.get(part) or []):
            if entry.get("name"):
                found[entry["name"]] = entry.get("value")
                places[f"hyperparameters.{entry['name']}"] = f"{part}[{number}]"
    return found, places


def submitted_of(values: dict[str, Any]) -> dict[str, Any]:
    """The request as it is kept: secrets masked, the user left to the credential."""
    kept = {name: value for name, value in values.items() if name not in ("userId", "userName")}
    if "variable" in kept:
        kept["variable"] = without_secrets(kept["variable"])
    return kept
