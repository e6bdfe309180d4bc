"""Create evaluations that run their owner's own program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.images.access import access_image_version
from clavier.runs.options import checked_options
from clavier.runs.own_code import Problems, checked_own_code, placeholders, require_allowed
from clavier.runs.services import checked_resources
from datasets_app.queries import access_dataset_version
from evaluation_app.models import EvaluationTask
from evaluation_app.services import launch
from models_app.services import access_model_version, check_model_name, require_usable
from models_app.staging import check_stored_folders


def create_custom_evaluation_task(
    *,
    actor: Actor,
    name: str,
    command: str,
    code_folder: str = "",
    image: UUID | str | None = None,
    environment: Mapping[str, Any] | None = None,
    data_folder: str = "",
    dataset_version: UUID | str | None = None,
    model_folder: str = "",
    model_version: UUID | str | None = None,
    output_folder: str = "",
    resources: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    time_limit_s: int | None = None,
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
) -> EvaluationTask:
    """An evaluation by the user's own program, started at once. docs/custom-code.md tells how.

    ``image``: id of an image version; None: the platform's own environment. Raises InvalidFields with every bad field
    at once, NotFound for what the actor may not see, Forbidden, Conflict, Unprocessable where it can not run.
    """
    require_write(actor)
    problems = Problems()
    problems.check(check_model_name, name)
    code = checked_own_code(
        actor,
        problems,
        command=command,
        known=placeholders(
            has_model=bool(model_folder or model_version), has_input=bool(data_folder or dataset_version)
        ),
        code_folder=code_folder,
        environment=environment,
        data_folder=data_folder,
        model_folder=model_folder,
        output_folder=output_folder,
    )
    check_stored_folders(actor, problems, code)
    for folder_field, given, version_field, chosen in (
        ("data_folder", data_folder, "dataset_version", dataset_version),
        ("model_folder", model_folder, "model_version", model_version),
    ):
        if given and chosen:
            message = f"{folder_field} and {version_field} exclude each other: give what the program is to read."
            problems.add(folder_field, "conflicting_fields", message)
    data = (
        problems.check(access_dataset_version, actor, dataset_version, field="dataset_version")
        if dataset_version
        else None
    )
    model = problems.check(access_model_version, actor, model_version) if model_version else None
    if model is not None:
        require_usable(model)
    version = problems.check(access_image_version, actor, image, field="image") if image else None
    where = problems.check(checked_options, options or {}) or {}
    wanted = problems.check(checked_resources, resources or {}, resource_group=where.get("resource_group", ""))
    problems.end()
    require_allowed(has_image=version is not None, resource_group=where.get("resource_group", ""))
    with transaction.atomic():
        task = EvaluationTask.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            name=name,
            description=description,
            create_way="custom",
            model_version=model,
            dataset_version=data,
            image_version=version,
            own_code=code.to_json(),
            resources=wanted,
            options=where,
            time_limit_s=time_limit_s,
            submitted=dict(submitted or {}),
        )
        launch(actor, task)
    return task
