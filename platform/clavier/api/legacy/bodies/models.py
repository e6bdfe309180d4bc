"""aiApplicationDTO: a model, its versions and its declared hyperparameters, and what of it a service is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.fields import Body, Id, Number, Place, Structure, UserIs, Word, YesNo
from clavier.api.legacy.paths import location_of
from clavier.api.legacy.requests import Value, image_argument
from clavier.api.legacy.shapes.models import FROM_FILES, FROM_IMAGE, FROM_TRAINING, LOCAL_STORAGE, OBJECT_STORAGE
from clavier.api.legacy.words import say
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, DomainError, Invalid, quoted
from clavier.files.folders import own_row
from finetune_app.registration import version_from_task
from finetune_app.services import access_fine_tune_task
from models_app.object_stores import store_at
from models_app.registering import NewVersion

SOURCES = {FROM_TRAINING: "fine_tune", FROM_IMAGE: "image", FROM_FILES: "folder"}
#: Words for a type that clients write -> ours.
TYPES = {
    "integer": "int", "long": "int", "double": "float", "number": "float", "string": "str", "text": "str",
    "boolean": "bool",
}  # fmt: skip
#: Fields of who asks: the credential says it.
_PERSON = ("createUser", "userName", "loginUser")


class ApplicationBody(Body):
    """AiApplication_1."""

    name = Word(required=True, max_length=100, help_text="模型名称")
    description = Word(help_text="模型简要描述")
    type = Word(max_length=40, help_text="模型类型，例如 LLM")
    developer = Word(max_length=200, help_text="模型厂商")
    createUser = UserIs(help_text="创建人；不填为本人")
    userName = Word(max_length=150, help_text="用户名称")
    loginUser = Number(high=1, help_text="0为管理员，1为普通用户；不参与鉴权 / never read for authority")


class ModelVersionBody(Body):
    """AiApplicationVersion_1."""

    version = Id(max_length=100, help_text="AI应用版本")
    applicationName = Word(max_length=100, help_text="AI应用名称")
    description = Word(help_text="描述")
    source = Number(FROM_TRAINING, FROM_FILES, help_text="1 训练结果 2 自定义镜像 3 本地文件（默认）")  # type: ignore[assignment]
    saveType = Number(OBJECT_STORAGE, LOCAL_STORAGE, help_text="存储类别 1.对象存储 2.本地存储（默认）")
    savePath = Place(help_text="存储路径：个人文件中的目录；saveType=1 时为 s3://存储名/桶/前缀")
    configPath = Place(help_text="配置文件存储路径；configSaveType=1 时为 s3://存储名/桶/前缀")
    configSaveType = Number(OBJECT_STORAGE, LOCAL_STORAGE, help_text="配置文件存储类别 1.对象存储 2.本地存储")
    trainTaskVersionId = Id(help_text="训练版本id：训练产出的模型版本")
    llmFineTuneTaskId = Id(help_text="大模型微调id：取其产出的模型；自定义代码的输出由导入任务登记")
    image = Word(max_length=500, help_text="镜像地址，source=2 时必填")
    imageType = Number(high=1, help_text="镜像类型 0：推理框架适配镜像，1：自定义镜像")
    framework = Number(help_text="框架选择")
    frameworkStyle = Number(help_text="模型格式")
    label = Word(help_text="标签")  # type: ignore[assignment]
    modelStructure = Word(help_text="模型结构")
    preDeployLabel = Word(max_length=200, help_text="模型预部署时起pod的唯一标识")
    scale = Word(max_length=40, help_text="参数规模")
    createUser = UserIs(help_text="创建人；不填为本人")
    userName = Word(max_length=150, help_text="用户名称")
    loginUser = Number(high=1, help_text="0为管理员，1为普通用户；不参与鉴权")


class HyperParameterBody(Body):
    """HyperParameterDTO."""

    paramName = Word(max_length=200, help_text="参数名称")
    type = Word(max_length=40, help_text="类型")
    value = Value(required=False, allow_null=True, help_text="默认值")
    valueRange = Structure(list, help_text="取值范围")
    edit = YesNo(help_text="是否可编辑")


class NewApplication(Body):
    """AiApplicationDTO_1."""

    application = ApplicationBody(required=True)
    aiApplicationVersionList = ModelVersionBody(many=True, required=False, allow_null=True)
    hyperParameterList = HyperParameterBody(many=True, required=False, allow_null=True)


def arguments_of(actor: Actor, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The service's arguments, and the name of each of its fields in the request.

    Raises Invalid, NotFound, Conflict, Unprocessable.
    """
    versions, names = [], {"name": "application.name"}
    declarations, places = declarations_of(values.get("hyperParameterList") or [])
    check_version_names(values.get("aiApplicationVersionList") or [])
    for number, version in enumerate(values.get("aiApplicationVersionList") or []):
        place = f"aiApplicationVersionList[{number}]"
        check_application_name(version, values["application"], place)
        wanted, field = new_version(actor, version, place)
        versions.append(replace(wanted, declarations=declarations))
        names[f"versions.{number}.location"] = f"{place}.{field}"
    application = values["application"]
    arguments = {
        "name": application["name"],
        "description": application.get("description", ""),
        "versions": versions,
        "submitted": {**without_person(application), "hyperParameterList": values.get("hyperParameterList") or []},
    }
    return arguments, {**names, **places}


def declarations_of(given: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The declared hyperparameters as the service wants them, and where each was written."""
    found: list[dict[str, Any]] = []
    places = {"declarations": "hyperParameterList"}
    for number, entry in enumerate(given):
        if not entry.get("paramName"):
            continue
        ours, place = f"declarations[{len(found)}]", f"hyperParameterList[{number}]"
        places |= {ours: place, f"{ours}.name": f"{place}.paramName", f"{ours}.range": f"{place}.valueRange"}
        kind = entry.get("type", "").lower()
        found.append(
            {
                "name": entry["paramName"],
                "type": TYPES.get(kind, kind),
                "value": entry.get("value"),
                "range": entry.get("valueRange") or [],
                "is_editable": entry.get("edit", True),
            }
        )
    return found, places


def check_version_names(versions: list[dict[str, Any]]) -> None:
    """Each version of a model can be told by its name, or its number where it has none. Raises Conflict."""
    taken: set[str] = set()
    for number, version in enumerate(versions):
        name = version.get("version") or str(number + 1)
        if name in taken:
            field = f"aiApplicationVersionList[{number}].version"
            message = say(
                f"{field}: 该模型已有版本 {quoted(name)}，请换一个名称",
                f"{field}: the model has a version {quoted(name)} already; choose another name.",
            )
            raise spoken(Conflict(message, code="already_exists", field=field))
        taken.add(name)


def check_application_name(values: dict[str, Any], application: dict[str, Any], place: str) -> None:
    """A version belongs to the model of its request. Raises Invalid (``conflicting_fields``)."""
    if values.get("applicationName", "") in ("", application["name"]):
        return
    field = f"{place}.applicationName"
    message = say(
        f"{field} 与 application.name {quoted(application['name'])} 不一致",
        f"{field} is not application.name, {quoted(application['name'])}.",
    )
    raise spoken(Invalid(message, code="conflicting_fields", field=field))


def new_version(actor: Actor, values: dict[str, Any], place: str) -> tuple[NewVersion, str]:
    """What a version is made from, and the field that says it. Raises Invalid, NotFound, Conflict, Unprocessable."""
    source = values.get("source") or FROM_FILES
    check_config_place(actor, values, f"{place}.configPath")
    check_training_fields(values, source, place)
    kept = without_person(values)
    if source == FROM_IMAGE:
        version = image_argument(actor, values.get("image") or "", field=f"{place}.image")
        return NewVersion("image", str(version or missing(f"{place}.image")), submitted=kept), "image"
    if source == FROM_TRAINING:
        return replace(trained(actor, values, place), submitted=kept), training_field(values)
    if values.get("saveType") == OBJECT_STORAGE:
        path = in_object_store(values.get("savePath") or "") or missing(f"{place}.savePath")
        return NewVersion("s3", path, submitted=kept), "savePath"
    location = location_of(values.get("savePath") or "", field=f"{place}.savePath")
    return NewVersion("folder", location or missing(f"{place}.savePath"), submitted=kept), "savePath"


def check_config_place(actor: Actor, values: dict[str, Any], field: str) -> None:
    """The configuration lies where ``configSaveType`` says; whether there is one in a store, its import finds out.

    Raises Invalid, NotFound, Unprocessable (``host_not_allowed``).
    """
    path = values.get("configPath") or ""
    if path and values.get("configSaveType") == OBJECT_STORAGE:
        store_at(actor, in_object_store(path), field=field)
    elif location := location_of(path, field=field):
        own_row(actor, location, field=field)


def check_training_fields(values: dict[str, Any], source: int, place: str) -> None:
    """One training names what source 1 takes, and nothing else has one. Raises Invalid (``conflicting_fields``)."""
    given = [name for name in ("trainTaskVersionId", "llmFineTuneTaskId") if values.get(name)]
    if not given or (source == FROM_TRAINING and len(given) == 1):
        return
    field = f"{place}.{given[0]}"
    message = say(
        f"{field}: 仅 source=1 时可填，且 trainTaskVersionId 与 llmFineTuneTaskId 只能填写一个",
        f"{field}: it goes with source 1 only, and with one of trainTaskVersionId and llmFineTuneTaskId.",
    )
    raise spoken(Invalid(message, code="conflicting_fields", field=field))


def in_object_store(path: str) -> str:
    """``store/bucket/prefix`` of the same with ``s3://`` in front of it."""
    return path.removeprefix("s3://").strip("/")


def trained(actor: Actor, values: dict[str, Any], place: str) -> NewVersion:
    """The version that a training made, named itself or by its task; the output of the user's own program is imported.

    Raises Invalid, NotFound, Conflict.
    """
    if values.get("trainTaskVersionId"):
        return NewVersion("fine_tune", str(values["trainTaskVersionId"]))
    field = f"{place}.llmFineTuneTaskId"
    task_id = values.get("llmFineTuneTaskId") or missing(field)
    try:
        return version_from_task(access_fine_tune_task(actor, task_id))
    except DomainError as refusal:
        refusal.field = field
        raise


def training_field(values: dict[str, Any]) -> str:
    """Which field names the training."""
    return "trainTaskVersionId" if values.get("trainTaskVersionId") else "llmFineTuneTaskId"


def missing(field: str) -> str:
    """Raises Invalid (``required``)."""
    raise spoken(Invalid(say(f"{field}: 必填", f"{field}: this field is required."), code="required", field=field))


def without_person(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that are kept as they were written."""
    return {name: value for name, value in values.items() if name not in _PERSON}
