"""Register what a task has made as a model version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, quoted
from clavier.core.paths import parse_path
from clavier.runs.outputs import list_output, run_folder
from clavier.runs.states import RunState
from finetune_app.models import FineTuneTask
from finetune_app.queries import output_version
from models_app.declarations import checked_declarations
from models_app.models import ModelVersion
from models_app.registering import FolderImport, NewVersion
from models_app.services import check_model_name, start_import
from runner.contract import folder

MAX_LISTED = 10_000


def register_task_output(
    *,
    actor: Actor,
    task: FineTuneTask,
    name: str,
    subfolder: str = "",
    description: str = "",
    declarations: Sequence[Mapping[str, Any]] | None = None,
    submitted: Mapping[str, Any] | None = None,
    model_submitted: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """A version of the model ``name`` from the output of the task's newest run, imported by a run of its own.

    ``subfolder``: where in the output the model lies; empty: where its configuration and weights are found.
    Raises Conflict unless the run has completed, Invalid (``missing_file``) where there is no model, Forbidden.
    """
    require_write(actor)
    check_model_name(name)
    output = output_of(task, subfolder)
    columns = {
        **output.columns,
        "declarations": checked_declarations(declarations or []),
        "submitted": dict(submitted or {}),
    }
    about = {"description": description, "submitted": dict(model_submitted or {})}
    return start_import(actor, name, about, columns, dict(output.parameters))


def version_from_task(task: FineTuneTask) -> NewVersion:
    """What a new model takes from a task: the version that a recipe made, else the output of the user's own program.

    Raises Conflict (``not_ready``), Invalid (``missing_file``).
    """
    made = output_version(task)
    if made is not None:
        return NewVersion("fine_tune", str(made.pk))
    return NewVersion("fine_tune", str(task.pk), output=output_of(task))


def output_of(task: FineTuneTask, subfolder: str = "") -> FolderImport:
    """The import of the output of the task's newest run.

    Raises Conflict (``not_ready``) unless the run has completed, Invalid (``missing_file``) where there is no model.
    """
    run = task.run
    if run is None or run.state != RunState.COMPLETED:
        state = run.state if run else "not started"
        raise Conflict(
            f"The task {quoted(task.name)} is {state}; only the output of a completed run can be registered.",
            code="not_ready",
            field="task",
        )
    inside = model_folder_of(run.pk, subfolder)
    base = task.base_version if task.base_version and task.base_version.format == "full" else None
    columns = {
        "source": "fine_tune",
        "location": str(task.pk),
        "base_version": base,
        "dataset_version": task.train_dataset,
    }
    parameters = {
        "source": "folder",
        "location": str(run_folder(run.pk).joinpath(folder.OUTPUT, *parse_path(inside))),
        "revision": None,
        "in_place": False,
        "endpoint": None,
        "base_model": str(base.path) if base else None,
    }
    return FolderImport(columns, parameters)


def model_folder_of(run_id: UUID, subfolder: str) -> str:
    """The folder in a run's output that holds a model or an adapter, nearest to the top. Raises Invalid."""
    files = [path for path, _ in list_output(run_id, MAX_LISTED)]
    holders: dict[str, set[str]] = {}
    for path in files:
        holders.setdefault(str(PurePosixPath(path).parent), set()).add(PurePosixPath(path).name)
    wanted = "/".join(parse_path(subfolder, field="subfolder")) or None
    for holder, names in holders.items():
        has_config = "config.json" in names or "adapter_config.json" in names
        has_weights = any(name.endswith(".safetensors") for name in names)
        if has_config and has_weights and wanted in (None, "" if holder == "." else holder):
            return "" if holder == "." else holder
    place = f"the folder {quoted(subfolder)} of the output" if subfolder else "the output"
    raise Invalid(
        f"There is no model in {place}: config.json or adapter_config.json beside weights in safetensors.",
        code="missing_file",
        field="subfolder",
    )
