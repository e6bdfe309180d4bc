"""What the pages of models show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Prefetch
from django.utils.translation import get_language

from clavier.core.actor import Actor
from clavier.portal.forms.models import ModelForm
from clavier.portal.listing import Listing
from clavier.runs.queries import progress
from clavier.runs.states import LIVE_STATES
from clavier.runs.waiting import explain
from finetune_app.models import FineTuneTask
from finetune_app.queries import visible_tasks
from models_app.models import ModelVersion, RegisteredModel
from models_app.presets import presets
from models_app.queries import lineage, visible_models, visible_versions


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model in a list with its newest version."""

    model: RegisteredModel
    newest: ModelVersion | None
    is_live: bool


@dataclass(frozen=True, slots=True)
class ModelList:
    """The list of models."""

    listing: Listing[RegisteredModel]
    rows: list[ModelRow]
    is_live: bool


@dataclass(frozen=True, slots=True)
class ModelNew:
    """The form, and well-known models that fill it."""

    form: ModelForm
    presets: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version with what it was made from, newest first, and how far its import is."""

    version: ModelVersion
    chain: list[ModelVersion]
    task: FineTuneTask | None
    is_live: bool
    phase: str
    step: int | None
    total_steps: int | None


@dataclass(frozen=True, slots=True)
class ModelDetail:
    """A model and its versions."""

    model: RegisteredModel
    versions: list[VersionRow]
    is_live: bool
    may_change: bool


def model_list(listing: Listing[RegisteredModel]) -> ModelList:
    """Models with their newest versions."""
    rows = [model_row(model) for model in listing.rows]
    return ModelList(listing, rows, any(row.is_live for row in rows))


def with_versions(actor: Actor, search: str) -> Any:
    """The models of a list; their versions come in one more query."""
    versions = Prefetch("versions", visible_versions(actor).order_by("-number"))
    return visible_models(actor, search=search).prefetch_related(versions)


def model_row(model: RegisteredModel) -> ModelRow:
    """One row of the list."""
    versions = list(model.versions.all())
    return ModelRow(model, versions[0] if versions else None, any(v.state == "importing" for v in versions))


def model_new(form: ModelForm) -> ModelNew:
    """The form beside the presets in the reader's language."""
    use = "use_zh" if (get_language() or "").startswith("zh") else "use_en"
    return ModelNew(form, [{**preset, "use": preset[use]} for preset in presets()])


def model_detail(actor: Actor, model: RegisteredModel) -> ModelDetail:
    """All versions of a model, newest first."""
    versions = list(visible_versions(actor).filter(model=model).order_by("-number"))
    run_ids = [version.run_id for version in versions if version.source == "fine_tune"]
    tasks = {task.run_id: task for task in visible_tasks(actor).filter(run__in=run_ids)}
    rows = [version_row(version, tasks.get(version.run_id)) for version in versions]
    return ModelDetail(
        model=model,
        versions=rows,
        is_live=any(row.is_live for row in rows),
        may_change=actor.may_write and (actor.manages_tenant or model.created_by_id == actor.user_id),
    )


def version_row(version: ModelVersion, task: FineTuneTask | None) -> VersionRow:
    """One version."""
    run = version.run
    is_live = version.state == "importing" and run is not None and run.state in LIVE_STATES
    found = progress(run.pk) if run is not None and is_live else {}
    return VersionRow(
        version=version,
        chain=lineage(version),
        task=task,
        is_live=is_live,
        phase=found.get("phase", {}).get("message", "") or explain(run).why,
        step=found.get("progress", {}).get("step"),
        total_steps=found.get("progress", {}).get("total_steps"),
    )
