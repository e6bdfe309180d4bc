"""An evaluation as the document's page and detail show it."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.fields import as_text
from clavier.api.legacy.groups import names_of
from clavier.api.legacy.shapes.ends import End, end_of
from clavier.api.legacy.shapes.tuning import resource_of
from clavier.api.legacy.states import word_of
from clavier.api.legacy.times import duration_of, time_of
from evaluation_app.models import EvaluationTask
from evaluation_app.queries import score_table

_TEXTS = (
    "command", "image", "inputType", "inputDir", "modelType", "modelDir", "aiAppVersionId", "aiAppVersionName",
    "outputDir", "workDir", "storageMedium",
)  # fmt: skip


class EvaluationCreated(serializers.Serializer[Any]):
    """What a client needs to find its task again."""

    id = serializers.CharField()


class EvaluationDetail(End):
    """The fields of 6.3, and what the evaluation found."""

    id = serializers.CharField()
    name = serializers.CharField()
    status = serializers.CharField(help_text="Pending, Running, Succeeded, Failed, Stopped")
    description = serializers.CharField(allow_blank=True)
    creatorId = serializers.CharField()
    createTime = serializers.CharField(help_text="yyyy-MM-dd HH:mm:ss")
    endTime = serializers.CharField(allow_null=True)
    runTime = serializers.CharField(allow_blank=True, help_text="54分41秒")
    resourceGroupId = serializers.CharField(allow_null=True)
    resourceGroupName = serializers.CharField()
    resourceGroupKey = serializers.CharField(allow_null=True)
    resource = serializers.DictField(help_text="{cpuNumber, memory, gpuResource}")
    command = serializers.CharField(allow_blank=True)
    image = serializers.CharField(allow_blank=True)
    env = serializers.CharField(help_text='JSON 字符串，例如 "[]"')
    inputType = serializers.CharField(allow_blank=True)
    inputDir = serializers.CharField(allow_blank=True)
    storageMedium = serializers.CharField(allow_blank=True)
    datasetId = serializers.CharField(allow_null=True)
    datasetName = serializers.CharField(allow_null=True)
    modelType = serializers.CharField(allow_blank=True)
    modelDir = serializers.CharField(allow_blank=True)
    aiAppVersionId = serializers.CharField(allow_blank=True)
    aiAppVersionName = serializers.CharField(allow_blank=True)
    outputDir = serializers.CharField(allow_blank=True)
    workDir = serializers.CharField(allow_blank=True)
    scores = serializers.DictField(help_text="指标 → 候选 → {value, low, high}")
    results = serializers.DictField(help_text="自定义评估的输出 / what the program left in its output folder")


def row_of(task: EvaluationTask) -> dict[str, Any]:
    """A row of 6.2."""
    return {
        "id": str(task.pk),
        "name": task.name,
        "status": word_of(task.run),
        "runTime": duration_of(task.run),
        "description": task.description,
        "creatorId": str(task.created_by_id),
        "createTime": time_of(task.created_at),
    }


def detail_of(task: EvaluationTask) -> dict[str, Any]:
    """Everything of one evaluation."""
    run, wrote, model, data = task.run, task.submitted, task.model_version, task.dataset_version
    texts = {name: wrote.get(name, "") for name in _TEXTS}
    if model is not None:
        texts |= {"modelType": "aiApp", "aiAppVersionId": str(model.pk)}
        texts["aiAppVersionName"] = texts["aiAppVersionName"] or str(model)
    if data is not None:
        texts["inputType"] = "dataset"
    resource = resource_of(task.resources)
    del resource["nodeType"], resource["numbers"]
    asked = wrote.get("resource") or {}
    gpu = {**resource["gpuResource"], **(asked.get("gpuResource") or {})}
    return {
        **row_of(task),
        **names_of(run.resource_group if run else ""),
        **texts,
        "endTime": time_of(run.ended_at) if run else None,
        "resource": {**resource, **asked, "gpuResource": gpu},
        "env": as_text(wrote.get("env") or []),
        "datasetId": wrote.get("datasetId") or (str(data.pk) if data else None),
        "datasetName": wrote.get("datasetName") or (data.dataset.name if data else None),
        **end_of(run),
        "scores": score_table(task),
        "results": task.results,
    }
