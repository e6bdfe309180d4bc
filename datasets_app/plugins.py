"""Data plugins: programs of users with declared parameters, whose output becomes a version of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError, QuerySet

from clavier.accounts.access import access_object, creator_of, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, FieldProblem, Invalid, InvalidFields, quoted
from clavier.core.names import parse_display_name
from clavier.core.paths import parse_path
from clavier.core.problems import Problems
from clavier.core.references import in_use
from clavier.images.access import access_image_version, image_of_run
from clavier.runs.own_code import (
    OwnCode,
    checked_own_code,
    command_parts,
    data_inputs,
    placeholders,
    require_allowed,
)
from clavier.runs.services import checked_resources
from datasets_app.formats import format_of
from datasets_app.labels import checked_labels
from datasets_app.literals import parameters_of_text
from datasets_app.mapping import checked_mapping
from datasets_app.models import DataPlugin, Dataset, DatasetVersion, DataTask
from datasets_app.queries import access_dataset, access_dataset_version
from datasets_app.services import checked_purpose, rows_path
from datasets_app.tasks import DEFAULT_TIME_LIMIT_S, submitted
from runner.contract.run_spec import Limits, Resources, RunSpec

MAX_PARAMETERS = 100
MAX_VALUE_CHARACTERS = 4096
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KEYS = ("name", "type", "default", "required", "choices", "help")


def create_plugin(
    *,
    actor: Actor,
    name: str,
    version: str,
    command: str,
    code_folder: str = "",
    image: UUID | str | None = None,
    environment: Mapping[str, Any] | None = None,
    parameters: Sequence[Mapping[str, Any]] = (),
    output_file: str = "data.jsonl",
    plugin_class: str = "",
    provider: str = "",
    description: str = "",
) -> DataPlugin:
    """A plugin of the tenant.

    ``command`` may name ``${output_dir}``, ``${input_dir}`` and each parameter; a parameter that it does not name is
    appended as ``--name value``. Raises Forbidden, NotFound, InvalidFields, Conflict (``already_exists``).
    """
    require_write(actor)
    image_version = access_image_version(actor, image, field="image") if image else None
    problems = Problems()
    declared = problems.check(checked_declarations, parameters) or []
    code = checked_own_code(
        actor,
        problems,
        command=command,
        known=[*placeholders(has_model=False, has_input=True), *(item["name"] for item in declared)],
        code_folder=code_folder,
        environment=environment,
    )
    words = {"plugin_class": plugin_class, "provider": provider}
    named = {field: text and problems.check(parse_display_name, text, field=field) for field, text in words.items()}
    called = {
        field: problems.check(parse_display_name, text, field=field)
        for field, text in {"name": name, "version": version}.items()
    }
    problems.check(format_of, output_file, field="output_file")
    problems.check(parse_path, output_file, field="output_file")
    problems.end()
    try:
        with transaction.atomic():
            return DataPlugin.objects.create(
                tenant_id=actor.tenant_id,
                created_by_id=actor.user_id,
                description=description[:20_000],
                parameters=declared,
                own_code=code.to_json(),
                image_version=image_version,
                output_file=output_file,
                **{field: value or "" for field, value in {**named, **called}.items()},
            )
    except IntegrityError as error:
        raise Conflict(
            f"A data plugin {quoted(name)} of version {quoted(version)} exists. Register another version.",
            code="already_exists",
            field="version",
        ) from error


def plugins_of(actor: Actor) -> QuerySet[DataPlugin]:
    """The tenant's plugins, newest first."""
    return DataPlugin.objects.filter(tenant_id=actor.tenant_id).select_related("created_by", "image_version__image")


def access_plugin(actor: Actor, plugin_id: UUID | str, *, field: str | None = None) -> DataPlugin:
    """The tenant's plugin. Raises NotFound."""
    return access_object(plugins_of(actor), actor, plugin_id, noun="data plugin", field=field)


def delete_plugin(*, actor: Actor, plugin: DataPlugin) -> None:
    """Forget a plugin; versions that it made stay. Raises Forbidden, Conflict (``in_use``) while tasks name it."""
    require_change(actor, plugin, noun="data plugin")
    try:
        plugin.delete()
    except ProtectedError as error:
        raise in_use(error, f"data plugin {quoted(str(plugin))}") from error


def run_plugin(
    *,
    actor: Actor,
    dataset: Dataset,
    plugin: UUID | str,
    parameters: Mapping[str, Any] | str | None = None,
    input_version: UUID | str | None = None,
    purpose: str = "",
    mapping: Mapping[str, str] | None = None,
    split: str = "",
    subset: str = "",
    resources: Mapping[str, Any] | None = None,
    time_limit_s: int | None = None,
) -> DataTask:
    """A run of the plugin, whose output becomes the next version of the data set once it passed the gate.

    ``parameters``: names and values, or a text of them as document 000 writes it (``literals.py``);
    ``input_version``: its rows lie at ``${input_dir}/train/train.jsonl``.
    Raises NotFound, Forbidden, Invalid (``bad_literal``), InvalidFields, Conflict, Unprocessable (``needs_container``,
    ``unschedulable``).
    """
    found = access_dataset(actor, dataset.pk)
    require_change(actor, found, noun="data set")
    chosen = access_plugin(actor, plugin, field="plugin")
    rows = access_dataset_version(actor, input_version, field="input_version") if input_version else None
    asked_for = parameters_of_text(parameters) if isinstance(parameters, str) else parameters or {}
    values = checked_parameters(chosen.parameters, asked_for)
    given: dict[str, Any] = {"purpose": checked_purpose(purpose), **checked_labels(split, subset)}
    given["mapping"] = None if mapping is None else checked_mapping(mapping)
    require_allowed(has_image=chosen.image_version is not None)
    asked = {"plugin": str(chosen), "parameters": values, "file_name": chosen.output_file, **given}
    with transaction.atomic():
        task = DataTask.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            kind="plugin",
            dataset=found,
            version=rows,
            plugin=chosen,
            request=asked,
        )
        run_id = uuid4()
        spec = plugin_spec(chosen, run_id, values, rows, checked_resources(resources or {}), time_limit_s)
        return submitted(actor, task, spec, run_id)


def plugin_spec(
    plugin: DataPlugin,
    run_id: UUID,
    values: Mapping[str, str],
    rows: DatasetVersion | None,
    resources: Mapping[str, Any],
    time_limit_s: int | None,
) -> RunSpec:
    """The plugin's command with its folders, which are its owner's. Raises NotFound, Invalid."""
    parts = command_parts(
        creator_of(plugin),
        OwnCode.from_json(plugin.own_code),
        run_id=run_id,
        inputs=data_inputs(str(rows_path(rows)) if rows else None, None),
        hyperparameters=values,
    )
    return RunSpec(
        kind="data",
        program=None,
        parameters={},
        argv=parts.argv,
        environment=parts.environment,
        mounts=parts.mounts,
        work=parts.work,
        start_in=parts.start_in,
        image=image_of_run(plugin.image_version, field="image") if plugin.image_version else None,
        resources=Resources(**resources),
        limits=Limits(time_limit_s=time_limit_s or DEFAULT_TIME_LIMIT_S),
        needs_network=plugin.may_use_network,
    )


def checked_declarations(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Declared parameters, complete. Raises Invalid naming the one at fault."""
    if not isinstance(given, list | tuple) or len(given) > MAX_PARAMETERS:
        raise Invalid(
            f"parameters must be a list of at most {MAX_PARAMETERS}.", code="out_of_range", field="parameters"
        )
    declared: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        where = f"parameters[{number}]"
        if not isinstance(item, Mapping) or set(item) - set(_KEYS):
            raise Invalid(f"{where} must be an object of {', '.join(_KEYS)}.", code="wrong_type", field="parameters")
        name, kind = item.get("name"), item.get("type", "str")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in [other["name"] for other in declared]:
            raise Invalid(
                f"{where}.name {quoted(name)}: letters, digits and _, once each.", code="bad_name", field="parameters"
            )
        if not isinstance(kind, str) or kind not in TYPES:
            raise Invalid(
                f"{where}.type {quoted(kind)} is none of {', '.join(TYPES)}.", code="not_a_choice", field="parameters"
            )
        choices = item.get("choices") or []
        if not isinstance(choices, list) or len(choices) > MAX_PARAMETERS:
            raise Invalid(f"{where}.choices must be a list.", code="wrong_type", field="parameters")
        whole = {
            "name": name, "type": kind, "default": item.get("default"), "required": bool(item.get("required")),
            "choices": [checked_value(where, kind, choice) for choice in choices],
            "help": str(item.get("help", "")).replace("\0", "")[:500],
        }  # fmt: skip
        if whole["default"] is not None:
            whole["default"] = _chosen(where, whole, whole["default"])
        declared.append(whole)
    return declared


def checked_parameters(declared: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value as a program's argument, defaults filled in. Raises InvalidFields with all that is wrong."""
    problems = [
        FieldProblem(f"parameters.{name}", "unknown_field", f"parameters.{name} is no parameter of the plugin.")
        for name in sorted(given)
        if name not in {item["name"] for item in declared}
    ]
    values: dict[str, str] = {}
    for item in declared:
        name, where = item["name"], f"parameters.{item['name']}"
        value = given.get(name, item["default"])
        if value is None:
            if item["required"]:
                problems.append(
                    FieldProblem(where, "required", f"{where} is required: {item['help'] or item['type']}.")
                )
            continue
        try:
            values[name] = _chosen(where, item, value)
        except Invalid as refusal:
            problems.append(FieldProblem(where, refusal.code, refusal.message))
    if problems:
        raise InvalidFields(problems)
    return values


def checked_value(where: str, kind: str, value: Any) -> str:
    """A value as text, if it is one of the type. Raises Invalid."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    is_right = isinstance(value, str | int | float) and len(text) <= MAX_VALUE_CHARACTERS and "\0" not in text
    if is_right and kind == "bool":
        is_right = text in ("true", "false")
    elif is_right and kind in ("int", "float"):
        try:
            TYPES[kind](text)
        except ValueError:
            is_right = False
    if not is_right:
        raise Invalid(f"{where} {quoted(value)} is no {kind}.", code="wrong_type", field="parameters")
    return text


def _chosen(where: str, item: Mapping[str, Any], value: Any) -> str:
    text = checked_value(where, item["type"], value)
    if item["choices"] and text not in item["choices"]:
        raise Invalid(
            f"{where} {quoted(text)} is none of {', '.join(item['choices'])}.", code="not_a_choice", field="parameters"
        )
    return text
