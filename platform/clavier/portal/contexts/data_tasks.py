"""What the pages of data tasks and plugins show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clavier.core.actor import Actor
from clavier.portal.contexts.choices import Option, any_model_options, dataset_options, image_options
from clavier.portal.forms.data_tasks import FetchForm, GenerateForm, OverlapForm, PluginForm, TokensForm
from clavier.portal.listing import Listing
from clavier.runs.queries import progress
from datasets_app.models import DataPlugin, Dataset, DatasetVersion, DataTask
from datasets_app.plugins import plugins_of
from datasets_app.queries import versions_of
from datasets_app.tasks import tasks_of

MOST_TASKS = 50


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task, how far it is in percent (None: not known), and whether it still moves."""

    task: DataTask
    percent: int | None
    is_live: bool
    most_samples: int


@dataclass(frozen=True, slots=True)
class TaskRows:
    """The tasks of a dataset. ``is_live``: one of them moves, so the page asks again."""

    dataset: Dataset
    rows: list[TaskRow]
    is_live: bool
    may_change: bool


@dataclass(frozen=True, slots=True)
class DatasetWork:
    """The page: forms, what can be chosen, and the tasks."""

    dataset: Dataset
    version: DatasetVersion | None
    fetch: FetchForm
    generate: GenerateForm
    tokens: TokensForm
    overlap: OverlapForm
    models: list[Option]
    datasets: list[Option]
    plugins: list[Option]
    tasks: TaskRows


@dataclass(frozen=True, slots=True)
class PluginList:
    """The plugins of the tenant."""

    listing: Listing[DataPlugin]
    may_write: bool


@dataclass(frozen=True, slots=True)
class PluginNew:
    """The form of a plugin with the images that can be chosen."""

    form: PluginForm
    images: list[Option]


def task_rows(actor: Actor, dataset: Dataset) -> TaskRows:
    """The newest tasks with their progress."""
    rows = [task_row(task) for task in tasks_of(actor, dataset=dataset.pk)[:MOST_TASKS]]
    may_change = actor.may_write and (actor.manages_tenant or dataset.created_by_id == actor.user_id)
    return TaskRows(dataset, rows, any(row.is_live for row in rows), may_change)


def task_row(task: DataTask) -> TaskRow:
    """How far one task is."""
    told: dict[str, Any] = progress(task.run_id).get("progress", {}) if task.run_id and task.state == "running" else {}
    total = told.get("total_steps") or 0
    percent = min(100, round(100 * told["step"] / total)) if total else None
    classes = task.result.get("histogram", [])
    most = max((item["samples"] for item in classes), default=1)
    return TaskRow(task, percent, task.state in ("running", "checking"), most)


def dataset_work(actor: Actor, dataset: Dataset, number: int, **forms: Any) -> DatasetWork:
    """The page of a dataset with the version of that number, else the newest; ``forms``: those that were refused."""
    versions = list(versions_of(dataset))
    return DatasetWork(
        dataset=dataset,
        version=next((v for v in versions if v.number == number), versions[0] if versions else None),
        fetch=forms.get("fetch") or FetchForm(auto_id="fetch_%s"),
        generate=forms.get("generate") or GenerateForm(auto_id="generate_%s"),
        tokens=forms.get("tokens") or TokensForm(auto_id="tokens_%s"),
        overlap=forms.get("overlap") or OverlapForm(auto_id="overlap_%s"),
        models=any_model_options(actor),
        datasets=dataset_options(actor),
        plugins=[Option(str(plugin.pk), str(plugin), {}) for plugin in plugins_of(actor)],
        tasks=task_rows(actor, dataset),
    )


def plugin_new(actor: Actor, form: PluginForm) -> PluginNew:
    """The form with the tenant's images."""
    return PluginNew(form, image_options(actor))
