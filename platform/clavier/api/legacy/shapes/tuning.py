"""A fine-tuning task as the document's lists and details show it."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.shapes.ends import End, end_of
from clavier.api.legacy.states import word_of
from clavier.api.legacy.times import duration_of, time_of
from clavier.runs.queries import progress
from clavier.runs.waiting import explain
from finetune_app.models import FineTuneTask
from finetune_app.profile import COMMON, FINE_TUNE, special_names
from finetune_app.queries import output_version

STRATEGIES = {"lora": "LoRA", "qlora": "QLoRA", "full": "FineTune"}
MIB = 1024


class TaskCreated(serializers.Serializer[Any]):
    """What a client needs to find its task again."""

    taskId = serializers.CharField()
    id = serializers.CharField(help_text="同 taskId / the same")
    name = serializers.CharField()
    status = serializers.CharField(
        help_text="Pending, Running, Succeeded, Failed, Stopped; Created: 未启动 / not started"
    )


class TaskRow(TaskCreated):
    """A task in a list."""

    describe = serializers.CharField(allow_blank=True)
    createWay = serializers.CharField(help_text="custom：自定义，system：预置")
    fineTuneStrategy = serializers.CharField(allow_blank=True)
    isPretrain = serializers.IntegerField(help_text="1 预训练 0 调优")
    modelName = serializers.CharField(allow_blank=True)
    modelVersionId = serializers.CharField(allow_blank=True)
    dataSetName = serializers.CharField(allow_blank=True)
    datasetVersionId = serializers.CharField(allow_blank=True)
    zoneName = serializers.CharField(help_text="资源组名")
    userId = serializers.CharField()
    userName = serializers.CharField()
    createTime = serializers.CharField(help_text="yyyy-MM-dd HH:mm:ss")
    startTime = serializers.CharField(allow_null=True)
    endTime = serializers.CharField(allow_null=True)
    runTime = serializers.CharField(allow_blank=True, help_text="54分41秒")


class TaskDetail(TaskRow, End):
    """A task with every field of the request that made it, and what became of it."""

    waitingFor = serializers.CharField(allow_blank=True, help_text="排队原因 / what it waits for")
    progress = serializers.DictField(help_text="最新进度 / newest phase, progress and metrics")
    outputModelVersionId = serializers.CharField(
        allow_blank=True, help_text="产出的模型版本 / the model version it made"
    )
    request = serializers.DictField(
        help_text="创建时提交的全部参数，也按原名平铺在本对象中 / as submitted; the fields stand in this object too"
    )


def created_of(task: FineTuneTask) -> dict[str, Any]:
    """The answer to a create."""
    return {"taskId": str(task.pk), "id": str(task.pk), "name": task.name, "status": word_of(task.run)}


def row_of(task: FineTuneTask) -> dict[str, Any]:
    """A task in a list."""
    base, data, run = task.base_version, task.train_dataset, task.run
    return {
        **created_of(task),
        "describe": task.description,
        "createWay": task.create_way,
        "fineTuneStrategy": STRATEGIES.get(task.method, task.method),
        "isPretrain": int(task.is_pretrain),
        "modelName": str(base) if base else "",
        "modelVersionId": str(base.pk) if base else "",
        "dataSetName": data.dataset.name if data else str(task.submitted.get("dataSetName") or ""),
        "datasetVersionId": str(data.pk) if data else "",
        "zoneName": run.resource_group if run else str(task.submitted.get("zoneName") or ""),
        "userId": str(task.created_by_id),
        "userName": task.created_by.username,
        "createTime": time_of(task.created_at),
        "startTime": time_of(run.started_at) if run else None,
        "endTime": time_of(run.ended_at) if run else None,
        "runTime": duration_of(run),
    }


def detail_of(task: FineTuneTask) -> dict[str, Any]:
    """A task in full: what was derived fills in what the request left out, what is known now stands above both."""
    run, made = task.run, output_version(task)
    return {
        **derived(task),
        **task.submitted,
        **row_of(task),
        **end_of(run),
        "waitingFor": explain(run).why,
        "progress": progress(run.pk) if run else {},
        "outputModelVersionId": str(made.pk) if made else "",
        "request": task.submitted,
    }


def derived(task: FineTuneTask) -> dict[str, Any]:
    """The fields of a request that the task itself answers, also one that another dialect has made."""
    given = {name: value for name, value in task.hyperparameters.items() if value is not None}
    special = special_names(given, task.own_code.get("fine_tune_names", ()))
    return {
        "algorithmId": task.recipe,
        COMMON: [entry_of(name, value) for name, value in given.items() if name not in special],
        FINE_TUNE: [entry_of(name, value) for name, value in given.items() if name in special],
        "inputType": "dataset" if task.train_dataset_id else "local",
        "modelVersion": str(task.base_version.number) if task.base_version else "",
        "modelId": str(task.base_version.model_id) if task.base_version else "",
        "resource": [resource_of(task.resources)],
    }


def entry_of(name: str, value: Any) -> dict[str, str]:
    """A hyperparameter of either list."""
    return {"name": name, "value": as_written(value), "description": ""}


def as_written(value: Any) -> str:
    """A value as text, as the document's ``config.json`` has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def resource_of(resources: dict[str, Any]) -> dict[str, Any]:
    """Cores and GiB of a run's resources."""
    return {
        "nodeType": "master",
        "numbers": 1,
        "cpuNumber": -(-resources.get("cpu_milli", 0) // 1000),
        "memory": -(-resources.get("memory_mib", 0) // MIB),
        "gpuResource": {
            "gpuNum": resources.get("gpus", 0) or resources.get("mig_devices", 0),
            "gpuCores": resources.get("gpu_cores_percent", 0),
            "gpuMem": -(-resources.get("gpu_memory_mib", 0) // MIB),
            "gpuShare": "none",
            "migRes": resources.get("mig_profile", ""),
        },
    }
