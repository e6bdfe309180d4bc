"""Create evaluations that run their owner's own program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.problems import Problems
from clavier.images.placing import checked_place
from clavier.runs.own_code import checked_own_code, placeholders
from datasets_app.models import DatasetVersion
from datasets_app.queries import access_dataset_version
from evaluation_app.models import EvaluationTask
from evaluation_app.services import launch
from models_app.models import ModelVersion
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
    data = _data_of(actor, problems, data_folder, dataset_version)
    model = _model_of(actor, problems, model_folder, model_version)
    place = checked_place(actor, problems, image=image, options=options, resources=resources)
    problems.end()
    place.require_allowed()
    with transaction.atomic():
        task = EvaluationTask.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            name=name,
            description=description,
            create_way="custom",
            model_version=model,
            dataset_version=data,
            image_version=place.image,
            own_code=code.to_json(),
            resources=place.resources,
            options=place.options,
            time_limit_s=time_limit_s,
            submitted=dict(submitted or {}),
        )
        launch(actor, task)
    return task


def _data_of(
    actor: Actor, problems: Problems, data_folder: str, dataset_version: UUID | str | None
) -> DatasetVersion | None:
    """The version to read, where no folder is."""
    if data_folder and dataset_version:
        problems.exclude("data_folder", "dataset_version")
    if not dataset_version:
        return None
    return problems.check(access_dataset_version, actor, dataset_version, field="dataset_version")


def _model_of(
    actor: Actor, problems: Problems, model_folder: str, model_version: UUID | str | None
) -> ModelVersion | None:
    """The model to judge, where no folder is it."""
    if model_folder and model_version:
        problems.exclude("model_folder", "model_version")
    model = problems.check(access_model_version, actor, model_version) if model_version else None
    if model is not None:
        require_usable(model)
    return model
