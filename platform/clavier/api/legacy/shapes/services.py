"""modelServer, modelServerVersion and the instances of a version."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from clavier.api.legacy.fields import as_text
from clavier.api.legacy.groups import names_of
from clavier.api.legacy.shapes.ends import said_of
from clavier.api.legacy.shapes.tuning import MIB
from clavier.api.legacy.states import WORDS
from clavier.api.legacy.times import time_of
from clavier.runs.states import RunState
from inference_app.models import InferenceService, Replica, ServiceVersion
from inference_app.queries import replica_facts, state_of

STATES = {
    "DRAFT": "Draft", "CREATING": "Creating", "READY": "Running", "DEGRADED": "Degraded", "STOPPING": "Stopping",
    "STOPPED": "Stopped", "FAILED": "Failed",
}  # fmt: skip
METRIC_NUMBERS = {"requests_per_second": 1, "concurrency": 2, "gpu_utilization": 3}
ENDPOINT = "/openai/v1"


class Server(serializers.Serializer[Any]):
    """ModelServer, as created and as listed."""

    id = serializers.CharField()
    modelServerId = serializers.CharField(help_text="同 id / the same")
    name = serializers.CharField()
    description = serializers.CharField(allow_blank=True)
    path = serializers.CharField(allow_blank=True)
    status = serializers.CharField(help_text="Draft, Creating, Running, Degraded, Stopping, Stopped, Failed")
    endpoint = serializers.CharField(help_text="OpenAI 兼容接口；model 为服务名 / the model is the service's name")
    createUser = serializers.CharField()
    userName = serializers.CharField()
    createTime = serializers.CharField()
    modifiedTime = serializers.CharField()
    versionCount = serializers.IntegerField()


class ServerVersion(serializers.Serializer[Any]):
    """ModelServerVersion: every field of the request, and its id."""

    id = serializers.CharField()
    modelServerId = serializers.CharField()
    version = serializers.IntegerField()
    aiApplicationVersionId = serializers.CharField(allow_blank=True)
    aiApplicationVersionName = serializers.CharField(allow_blank=True)
    image = serializers.CharField(allow_blank=True)
    customImageFlag = serializers.IntegerField()
    command = serializers.CharField(allow_blank=True)
    imagePorts = serializers.CharField(allow_blank=True)
    envs = serializers.CharField(help_text="JSON 字符串")
    volumes = serializers.CharField(help_text="JSON 字符串")
    volumePath = serializers.CharField(allow_blank=True)
    hyperParameterList = serializers.CharField(help_text="JSON 字符串")
    rate = serializers.IntegerField()
    rates = serializers.ListField(child=serializers.JSONField())
    reqMethod = serializers.CharField()
    cpu = serializers.IntegerField()
    memory = serializers.IntegerField()
    gpu = serializers.IntegerField()
    gpuCores = serializers.IntegerField()
    gpuMem = serializers.IntegerField()
    gpuShare = serializers.CharField()
    migRes = serializers.CharField(allow_blank=True)
    replica = serializers.IntegerField()
    predictMinReplicas = serializers.IntegerField()
    predictMaxReplicas = serializers.IntegerField()
    metric = serializers.IntegerField()
    monitorThreshold = serializers.CharField()
    resourceGroupId = serializers.CharField(allow_null=True)
    resourceGroupName = serializers.CharField()
    resourceGroupKey = serializers.CharField(allow_null=True)
    createUser = serializers.CharField()
    userName = serializers.CharField()
    createTime = serializers.CharField()


class ServerDetail(serializers.Serializer[Any]):
    """ModelServerDTO."""

    modelServer = Server()
    modelServerVersions = ServerVersion(many=True)


class Instance(serializers.Serializer[Any]):
    """One replica."""

    index = serializers.IntegerField()
    instanceId = serializers.CharField(allow_null=True)
    status = serializers.CharField(help_text="Pending, Running, Succeeded, Failed, Stopped; Created: 未启动")
    message = serializers.CharField(allow_blank=True)
    restarts = serializers.IntegerField()
    engine = serializers.CharField(allow_null=True)
    startTime = serializers.CharField(allow_null=True)


class VersionInstances(ServerVersion):
    """A version with its instances."""

    instances = Instance(many=True)


def server_of(service: InferenceService) -> dict[str, Any]:
    """A service from ``visible_services``."""
    return {
        "id": str(service.pk),
        "modelServerId": str(service.pk),
        "name": service.name,
        "description": service.description,
        "path": service.submitted.get("path", ""),
        "status": STATES[state_of(service)],
        "endpoint": ENDPOINT,
        "createUser": str(service.created_by_id),
        "userName": service.created_by.username,
        "createTime": time_of(service.created_at),
        "modifiedTime": time_of(service.updated_at),
        "versionCount": len(service.versions.all()),
    }


def detail_of(service: InferenceService) -> dict[str, Any]:
    """A service from ``visible_services`` with its versions."""
    return {
        "modelServer": server_of(service),
        "modelServerVersions": [version_of(service, version) for version in service.versions.all()],
    }


def version_of(service: InferenceService, version: ServiceVersion) -> dict[str, Any]:
    """One version: what was written, and where nothing was, what it means."""
    wrote, model, resources = version.submitted, version.model_version, version.resources
    return {
        "id": str(version.pk),
        "modelServerId": str(service.pk),
        "version": version.number,
        "aiApplicationVersionId": str(model.pk) if model else "",
        "aiApplicationVersionName": str(model) if model else "",
        "image": wrote.get("image", ""),
        "customImageFlag": wrote.get("customImageFlag", int(version.image_version_id is not None)),
        "command": wrote.get("command", version.own_code.get("command", "")),
        "imagePorts": wrote.get("imagePorts", ",".join(map(str, version.image_ports))),
        "envs": as_text(wrote.get("envs") or []),
        "volumes": as_text([in_printed_order(volume) for volume in wrote.get("volumes") or []]),
        "volumePath": wrote.get("volumePath", ""),
        "hyperParameterList": as_text(wrote.get("hyperParameterList")),
        "rate": version.traffic_percent,
        "rates": wrote.get("rates") or [],
        "reqMethod": version.request_method,
        "cpu": wrote.get("cpu") or -(-resources.get("cpu_milli", 0) // 1000),
        "memory": wrote.get("memory") or -(-resources.get("memory_mib", 0) // MIB),
        "gpu": resources.get("gpus", 0) or resources.get("mig_devices", 0),
        "gpuCores": resources.get("gpu_cores_percent", 0),
        "gpuMem": resources.get("gpu_memory_mib", 0) // MIB,
        "gpuShare": wrote.get("gpuShare") or "none",
        "migRes": resources.get("mig_profile", ""),
        "replica": version.num_replicas,
        "predictMinReplicas": version.min_replicas,
        "predictMaxReplicas": version.max_replicas,
        "metric": METRIC_NUMBERS[version.scale_on],
        "monitorThreshold": str(version.scale_threshold),
        **names_of(version.options.get("resource_group") or "default"),
        "createUser": str(service.created_by_id),
        "userName": service.created_by.username,
        "createTime": time_of(version.created_at),
    }


def instances_of(version: ServiceVersion) -> dict[str, Any]:
    """A version with its replicas."""
    replicas = version.replicas.select_related("run").order_by("index")
    return {
        **version_of(version.service, version),
        "instances": [instance_of(replica) for replica in replicas],
    }


def instance_of(replica: Replica) -> dict[str, Any]:
    """One replica."""
    facts = replica_facts(replica)
    return {
        "index": facts["index"],
        "instanceId": str(facts["run_id"]) if facts["run_id"] else None,
        "status": WORDS[RunState(facts["state"])] if facts["state"] else "Created",
        "message": said_of(replica.run) or facts["why"],
        "restarts": facts["restarts"],
        "engine": facts["engine"],
        "startTime": time_of(facts["started_at"]),
    }


def in_printed_order(volume: Any) -> Any:
    """A volume with ``src`` before ``dst``, as the document prints it; PostgreSQL keeps no order of keys."""
    if not isinstance(volume, dict):
        return volume
    return {name: volume[name] for name in ("src", "dst") if name in volume} | volume
