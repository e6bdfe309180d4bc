"""Parts of request bodies that several operations share: resources, hyperparameters, variables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.fields import Body, Number, OneOf, Structure, Word
from clavier.api.legacy.paths import place_of
from clavier.api.legacy.words import said, say
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, Unprocessable, quoted
from clavier.images.access import access_image_version, find_image_version, parse_id
from clavier.quotas.requests import BOUNDS
from clavier.runs.own_code import STORED

GPU_SHARES = ("none", "share", "vgpu", "mig")
MASK = "***"
#: An image that is none: the program runs in what the platform itself is installed with.
PLATFORM_IMAGE = "platform"
#: storageMedium: the user's files, object storage.
LOCAL_MEDIUM, OBJECT_MEDIUM = "1201", "1203"
_DATA_SETS = ("datasetVersionId", "dataSetName", "datasetId", "datasetName")
#: A service's name of an amount -> the document's, and how many of the service's units are one of the document's.
DOCUMENT_NAMES = {
    "cpu_milli": ("cpuNumber", 1000),
    "memory_mib": ("memory", 1024),
    "gpus": ("gpuNum", 1),
    "gpu_cores_percent": ("gpuCores", 1),
    "gpu_memory_mib": ("gpuMem", 1024),
    "mig_devices": ("gpuNum", 1),
    "mig_profile": ("migRes", 1),
}
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|(API|ACCESS)_?KEY", re.IGNORECASE)


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}], "nullable": True})
class Value(serializers.Field[Any, Any, Any, Any]):
    """The value of a hyperparameter: a text as the document writes it, or a number or true/false."""

    default_error_messages = {
        "required": said("必填", "this field is required."),
        "null": said("必填", "this field is required."),
        "wrong_type": said("须为字符串或数字", "needs a text or a number."),
    }

    def to_internal_value(self, data: Any) -> Any:
        """Raises ValidationError."""
        if not isinstance(data, str | int | float):
            self.fail("wrong_type")
        return data

    def to_representation(self, value: Any) -> Any:
        """As it is."""
        return value


class HyperParameter(Body):
    """One entry of commonHyperParameters and fineTuneHyperParameters; one without a name is none."""

    name = Word(max_length=200, help_text="超参数名称")
    value = Value(required=False, allow_null=True, help_text="超参数值")
    description = Word(help_text="超参数描述")


class GpuResource(Body):
    """GPUs of one container: whole ones, a share of one, or MIG slices."""

    gpuNum = Number(help_text="gpu数量")
    gpuCores = Number(
        high=100, help_text="gpu核数（百分比），需 gpuShare=share / percent of one GPU, with gpuShare=share"
    )
    gpuMem = Number(help_text="gpu内存（GiB），需 gpuShare=share / GiB of one GPU, with gpuShare=share")
    gpuShare = OneOf(GPU_SHARES, help_text="none 整卡，share 或 vgpu 共享，mig 切分")
    migRes = Word(max_length=40, help_text="MIG 规格，例如 1g.10gb")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Raises ValidationError for fields that do not go together."""
        refuse_gpus_that_are_none(attrs, count="gpuNum")
        return attrs


def refuse_gpus_that_are_none(values: Mapping[str, Any], *, count: str) -> None:
    """Raises ValidationError for GPU fields that do not go together; ``count`` is the one of whole GPUs."""
    way = values.get("gpuShare")
    shares = way in ("share", "vgpu")
    for name in ("gpuCores", "gpuMem"):
        if values.get(name) and not shares:
            message = say(f"{name} 需要 gpuShare=share", f"{name} needs gpuShare=share.")
            raise serializers.ValidationError({name: message}, code="conflicting_fields")
        if shares and not values.get(name):
            message = say(f"gpuShare={way} 时必填，且大于 0", f"gpuShare={way} needs it, above 0.")
            raise serializers.ValidationError({name: message}, code="required")
    if shares and (values.get(count) or 0) > 1:
        message = say(
            f"与 gpuShare={way} 冲突：共享只用一块卡的一部分", f"gpuShare={way} is a part of one GPU; send 1."
        )
        raise serializers.ValidationError({count: message}, code="conflicting_fields")
    if shares and values.get("migRes"):
        message = say(f"migRes 与 gpuShare={way} 冲突", f"migRes and gpuShare={way} contradict each other.")
        raise serializers.ValidationError({"migRes": message}, code="conflicting_fields")
    if way == "mig" and not values.get("migRes"):
        message = say("gpuShare=mig 时必填，例如 1g.10gb", "gpuShare=mig needs it, such as 1g.10gb.")
        raise serializers.ValidationError({"migRes": message}, code="required")


def refuse_two_origins(values: Mapping[str, Any], kind: str, folder: str, objects: Sequence[str]) -> None:
    """Raises ValidationError for what is given as a folder and as an object, or in another way than ``kind`` says.

    ``objects``: the field of its id, then those of its names. Files of one's own may be left out, an object may not.
    """
    wanted = values.get(kind) or ""
    shared = [name for name in objects if values.get(name)]
    own = [folder] if values.get(folder) else []
    wrong = [*own, *shared] if own and shared else shared if wanted == "local" else own if wanted else []
    if wrong:
        names = ", ".join(wrong)
        message = say(
            f"与 {names} 冲突：目录与平台对象只能选一个", f"contradicts {names}: choose a folder or an object."
        )
        raise serializers.ValidationError({kind: message}, code="conflicting_fields")
    if wanted not in ("", "local") and not shared:
        message = say(f"{kind} 为 {wanted} 时必填", f"{kind} {wanted} needs it.")
        raise serializers.ValidationError({objects[0]: message}, code="required")


def differs(field: str, given: str, other: str, real: str) -> Invalid:
    """The refusal of a name that is not that of the object that ``other`` names."""
    message = say(
        f"{field}: {quoted(given, 60)} 与 {other} 不一致，后者为 {quoted(real, 60)}",
        f"{field}: {quoted(given, 60)} is not what {other} names; that is {quoted(real, 60)}.",
    )
    return spoken(Invalid(message, code="conflicting_fields", field=field))


class ContainerResource(Body):
    """Cores, GiB and GPUs of one container."""

    cpuNumber = Number(1, help_text="cpu核数 / cores")
    memory = Number(1, help_text="内存（GiB）/ memory in GiB")
    gpuResource = GpuResource(required=False, allow_null=True, help_text="GPU资源")


class NodeResource(ContainerResource):
    """The same for all containers of a role."""

    nodeType = OneOf(("master", "worker"), help_text="节点类型 master,worker")
    numbers = Number(1, 256, help_text="节点数量 / containers of the role")


class Variables(Structure):
    """Environment variables: ``[{"A": "1"}]`` or ``[{"name": "A", "value": "1"}]``, or that as a text."""

    default_error_messages = {
        "bad_entry": said('{place} 须为 {{"变量名": "值"}}', '{place} needs {{"NAME": "value"}}.'),
    }

    def to_internal_value(self, data: Any) -> list[dict[str, Any]]:
        """Raises ValidationError naming the entry."""
        entries = super().to_internal_value(data)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise serializers.ValidationError(
                    [say(f"{self.field_name}[{number}] 须为对象", f"{self.field_name}[{number}] needs an object.")],
                    code="wrong_type",
                )
        return list(entries)


def environment_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Name -> value of the variables, in both spellings of an entry."""
    found: dict[str, Any] = {}
    for entry in entries:
        if set(entry) == {"name", "value"}:
            found[entry["name"]] = entry["value"]
        else:
            found |= entry
    return found


def without_secrets(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The variables as they may be stored and shown: values whose names speak of secrets are masked."""
    return [
        {"name": entry["name"], "value": masked(str(entry["name"]), entry["value"])}
        if set(entry) == {"name", "value"}
        else {name: masked(name, value) for name, value in entry.items()}
        for entry in entries
    ]


def masked(name: str, value: Any) -> Any:
    """The value, or a mask where the name speaks of a secret."""
    return MASK if _SECRET.search(name) else value


def resources_of(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A container's resources in the platform's units; only what was asked for.

    ``names``: a service's name of each amount -> the field of the request. Raises Unprocessable (``unschedulable``).
    """
    gpu = values.get("gpuResource") or {}
    found = {}
    if values.get("cpuNumber"):
        found["cpu_milli"] = values["cpuNumber"] * 1000
    if values.get("memory"):
        found["memory_mib"] = values["memory"] * 1024
    if gpu.get("migRes"):
        found |= {"mig_profile": gpu["migRes"], "mig_devices": gpu.get("gpuNum") or 1}
    elif gpu.get("gpuShare") in ("share", "vgpu"):
        found |= {"gpu_cores_percent": gpu.get("gpuCores") or 0, "gpu_memory_mib": (gpu.get("gpuMem") or 0) * 1024}
    elif gpu.get("gpuNum"):
        found["gpus"] = gpu["gpuNum"]
    for name, amount in found.items():
        if isinstance(amount, int) and amount > BOUNDS[name][1]:
            raise too_much(name, amount, names[f"resources.{name}"])
    return found


def data_place(values: Mapping[str, Any]) -> str:
    """Where ``inputDir`` lies: among the user's files, or in an object store by ``storageMedium`` or its own prefix.

    Raises Invalid (``conflicting_fields``, ``required``).
    """
    text, medium = values.get("inputDir") or "", values.get("storageMedium")
    if medium == OBJECT_MEDIUM and any(values.get(name) for name in _DATA_SETS):
        message = say(
            "storageMedium 1203 说明 inputDir 的位置，与平台数据集冲突；请留空",
            "storageMedium 1203 is about inputDir and contradicts a data set of the platform; leave it out.",
        )
        raise spoken(Invalid(message, code="conflicting_fields", field="storageMedium"))
    if medium == OBJECT_MEDIUM and not text:
        message = say(
            "inputDir: storageMedium 为 1203 时必填，格式为 s3://存储名/桶/前缀",
            "inputDir: with storageMedium 1203 it is required: s3://store/bucket/prefix.",
        )
        raise spoken(Invalid(message, code="required", field="inputDir"))
    if medium == LOCAL_MEDIUM and text.startswith(STORED):
        message = say(
            "storageMedium 1201（本地）与 inputDir 的 s3:// 冲突，对象存储请填写 1203",
            "storageMedium 1201 is local and inputDir names an object store; send 1203.",
        )
        raise spoken(Invalid(message, code="conflicting_fields", field="storageMedium"))
    return place_of(text, field="inputDir", is_in_store=medium == OBJECT_MEDIUM)


def too_much(name: str, amount: int, field: str) -> Unprocessable:
    """The refusal of more than any request may name."""
    unit = DOCUMENT_NAMES[name][1]
    most = BOUNDS[name][1] // unit
    message = say(
        f"{field}: 没有节点能提供 {amount // unit}，单次请求最多 {most}",
        f"{field}: no node has {amount // unit}; the largest amount that a request may name is {most}.",
    )
    what = "GPU " if name in ("gpus", "mig_devices") else ""
    return spoken(Unprocessable(what + message, code="unschedulable", field=field))


def resource_names(prefix: str) -> dict[str, str]:
    """A service's name of each amount -> the field of the request."""
    found = {}
    for name, (field, _) in DOCUMENT_NAMES.items():
        part = "" if field in ("cpuNumber", "memory") else "gpuResource."
        found[f"resources.{name}"] = f"{prefix}.{part}{field}"
    return found


def image_argument(actor: Actor, image: str, *, field: str = "image") -> UUID | None:
    """The image version of an id or ``name:tag``; None for the platform's own environment. Raises NotFound."""
    if image in ("", PLATFORM_IMAGE):
        return None
    find = access_image_version if parse_id(image) else find_image_version
    return find(actor, image, field=field).pk
