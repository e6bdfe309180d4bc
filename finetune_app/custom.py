"""Create tasks that run their owner's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.problems import Problems
from clavier.images.placing import checked_place
from clavier.runs.commands import checked_hyperparameters
from clavier.runs.own_code import OwnCode, checked_own_code, placeholders
from datasets_app.models import DatasetVersion
from datasets_app.queries import access_dataset_version
from finetune_app.models import FineTuneTask
from finetune_app.profile import METHOD_OF_STRATEGY, Profile, check_saving, read_profile
from finetune_app.services import DEFAULT_TIME_LIMIT_S, insert_task, launch
from models_app.declarations import with_declared
from models_app.models import ModelVersion
from models_app.services import access_model_version, check_model_name, require_usable
from models_app.staging import check_stored_folders

METHODS = tuple(METHOD_OF_STRATEGY.values())


def create_custom_fine_tune_task(
    *,
    actor: Actor,
    name: str,
    command: str,
    code_folder: str = "",
    image: UUID | str | None = None,
    method: str = "",
    is_pretrain: bool = False,
    profile_path: str = "",
    hyperparameters: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    data_folder: str = "",
    train_dataset: UUID | str | None = None,
    validation_dataset: UUID | str | None = None,
    model_folder: str = "",
    base_model: UUID | str | None = None,
    output_folder: str = "",
    checkpoint_folder: str = "",
    resources: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    time_limit_s: int | None = None,
    output_model_name: str = "",
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
    claims_name: bool = False,
    start: bool = True,
) -> FineTuneTask:
    """A task of the user's own program, started at once unless ``start`` is False. docs/custom-code.md tells how.

    ``image``: id of an image version; None: the platform's own environment. ``claims_name``: as with recipes.

    Raises InvalidFields with every bad field at once, NotFound for what the actor may not see, Forbidden, Conflict
    (``already_exists``), Unprocessable where such programs or so large ones can not run.
    """
    require_write(actor)
    problems = Problems()
    problems.check(check_model_name, name)
    if output_model_name:
        problems.check(check_model_name, output_model_name, field="output_model_name")
    profile = (problems.check(read_profile, actor, profile_path) if profile_path else None) or Profile()
    base = base_of(actor, problems, model_folder, base_model)
    values = values_of(problems, profile, hyperparameters, base)
    has_model, has_input = bool(model_folder or base_model), bool(data_folder or train_dataset)
    code = checked_own_code(
        actor,
        problems,
        command=command,
        known=[*placeholders(has_model=has_model, has_input=has_input, has_config=True), *values],
        code_folder=code_folder,
        environment=environment,
        data_folder=data_folder,
        model_folder=model_folder,
        output_folder=output_folder,
        checkpoint_folder=checkpoint_folder,
        has_splits=True,
    )
    check_stored_folders(actor, problems, code)
    problems.check(check_saving, values, wants_checkpoints=bool(checkpoint_folder))
    if method and method not in METHODS:
        problems.add("method", "not_a_choice", f"method {method!r} is none of {', '.join(METHODS)}.")
    train, validation = data_of(actor, problems, data_folder, train_dataset, validation_dataset)
    place = checked_place(actor, problems, image=image, options=options, resources=resources)
    problems.end()
    place.require_allowed()
    code = OwnCode(**{**code.to_json(), "profile_path": profile_path, "fine_tune_names": profile.fine_tune_names})
    with transaction.atomic():
        task = insert_task(
            actor,
            claims_name=claims_name,
            name=name,
            description=description,
            create_way="custom",
            recipe="pretrain" if is_pretrain else "",
            method=method or profile.method,
            base_version=base,
            train_dataset=train,
            validation_dataset=validation,
            image_version=place.image,
            own_code=code.to_json(),
            hyperparameters=values,
            resources=place.resources,
            options=place.options,
            time_limit_s=time_limit_s or DEFAULT_TIME_LIMIT_S,
            output_model_name=output_model_name or name,
            submitted=dict(submitted or {}),
        )
        if start:
            launch(actor, task)
    return task


def values_of(
    problems: Problems, profile: Profile, given: Mapping[str, Any] | None, base: ModelVersion | None
) -> dict[str, Any]:
    """The hyperparameters: those of the profile, over them the given ones, and what the base declares."""
    values = problems.check(checked_hyperparameters, {**profile.values, **(given or {})}) or {}
    if base is None:
        return values
    declared = problems.check(with_declared, base.declarations, values)
    return problems.check(checked_hyperparameters, declared or {}) or {}


def data_of(
    actor: Actor,
    problems: Problems,
    data_folder: str,
    train_dataset: UUID | str | None,
    validation_dataset: UUID | str | None,
) -> tuple[DatasetVersion | None, DatasetVersion | None]:
    """The versions to read; a folder in their place must hold the three splits. Both at once is refused."""
    if data_folder and (train_dataset or validation_dataset):
        problems.exclude("data_folder", "train_dataset" if train_dataset else "validation_dataset")
    elif validation_dataset and not train_dataset:
        message = "train_dataset is required with validation_dataset."
        problems.add("train_dataset", "required", message)
    found = [
        problems.check(access_dataset_version, actor, version, field=field) if version else None
        for field, version in (("train_dataset", train_dataset), ("validation_dataset", validation_dataset))
    ]
    return found[0], found[1]


def base_of(actor: Actor, problems: Problems, model_folder: str, base_model: UUID | str | None) -> ModelVersion | None:
    """The version to tune, of any format: the user's own program knows what it takes."""
    if model_folder and base_model:
        problems.exclude("model_folder", "base_model")
    if not base_model:
        return None
    version = problems.check(access_model_version, actor, base_model, field="base_model")
    if version is not None:
        require_usable(version, field="base_model")
    return version
