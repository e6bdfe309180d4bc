"""A new model with its first versions in one step, from the three sources that a client can name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, DomainError, quoted
from models_app.declarations import checked_declarations
from models_app.models import ModelVersion, RegisteredModel
from models_app.services import (
    access_model_version,
    check_model_name,
    next_number,
    register_model,
    require_usable,
    start_import,
)


@dataclass(frozen=True, slots=True)
class FolderImport:
    """A folder that the platform has written itself: columns of the version, and the import program's parameters."""

    columns: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """``source``: ``folder`` (``location``: private/...), ``s3`` (store/bucket/prefix), ``fine_tune`` (the id of the
    version that a training made) or ``image`` (the id of an image version with the model in it).

    ``output``: what a program of the user's has made; it is imported, and ``location`` tells its task.
    """

    source: str
    location: str
    output: FolderImport | None = None
    declarations: Sequence[Mapping[str, Any]] = ()
    submitted: Mapping[str, Any] = field(default_factory=dict)


def create_model_with_versions(
    *,
    actor: Actor,
    name: str,
    versions: Sequence[NewVersion],
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
) -> tuple[RegisteredModel, list[ModelVersion]]:
    """A model and its versions, all or none. What has to be copied is taken over by runs; the rest is ready.

    Raises Forbidden, Invalid, NotFound, Conflict (``already_exists``, ``not_ready``); the field of a refusal begins
    with ``versions.<number>.`` where it concerns a version.
    """
    require_write(actor)
    check_model_name(name)
    with transaction.atomic():
        if RegisteredModel.objects.filter(tenant_id=actor.tenant_id, name=name).exists():
            raise Conflict(f"A model {quoted(name)} exists.", code="already_exists", field="name")
        model = RegisteredModel.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            name=name,
            description=description,
            submitted=dict(submitted or {}),
        )
        made = []
        for number, wanted in enumerate(versions):
            try:
                made.append(add_version(actor, model, wanted))
            except DomainError as refusal:
                if not (refusal.field or "").startswith("declarations"):
                    refusal.field = f"versions.{number}.location"
                raise
    return model, made


def add_version(actor: Actor, model: RegisteredModel, wanted: NewVersion) -> ModelVersion:
    """One version. Raises Invalid, NotFound, Conflict."""
    if wanted.output is not None:
        columns = {
            **wanted.output.columns,
            "declarations": checked_declarations(wanted.declarations),
            "submitted": dict(wanted.submitted),
        }
        return start_import(actor, model.name, {}, columns, dict(wanted.output.parameters))
    if wanted.source != "fine_tune":
        return register_model(
            actor=actor,
            name=model.name,
            source=wanted.source,
            location=wanted.location,
            declarations=wanted.declarations,
            submitted=wanted.submitted,
        )
    version = ModelVersion(
        tenant_id=actor.tenant_id,
        created_by_id=actor.user_id,
        model=model,
        number=next_number(model),
        source="fine_tune",
        state="ready",
        declarations=checked_declarations(wanted.declarations),
        submitted=dict(wanted.submitted),
    )
    share_files(version, access_model_version(actor, wanted.location, field="location"))
    version.save(force_insert=True)
    return version


def share_files(version: ModelVersion, made: ModelVersion) -> None:
    """The version is what a training has made, under another name; the files stay where they are.

    Its own declarations count where it has any.
    """
    require_usable(made, field="location")
    version.location, version.shares_files_with = str(made), made
    for column in (
        "folder", "format", "task", "base_version", "dataset_version", "architecture", "num_parameters", "size_bytes",
        "fingerprint", "render_hash", "facts", "metrics", "image_version",
    ):  # fmt: skip
        setattr(version, column, getattr(made, column))
    version.declarations = version.declarations or made.declarations
