"""The run of an evaluation that is its owner's own program, and what is taken from its output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from clavier.accounts.access import creator_of
from clavier.core.errors import NotFound
from clavier.images.access import image_of_run
from clavier.runs.models import Run
from clavier.runs.outputs import list_output, read_output
from clavier.runs.own_code import Inputs, OwnCode, command_parts, data_inputs, local_inputs, publish
from clavier.runs.states import RunState
from datasets_app.services import rows_path
from evaluation_app.models import EvaluationTask
from evaluation_app.results import MAX_METRICS, metrics_of
from runner.contract import folder
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

DEFAULT_TIME_LIMIT_S = 24 * 3600
MAX_RESULT_FILES = 100
MAX_RESULT_BYTES = 1024 * 1024
RESULT_ENDINGS = (".json", ".csv", ".txt")


def own_code_spec(task: EvaluationTask, run_id: UUID) -> RunSpec:
    """The command with its folders and environment. Raises NotFound, Invalid, Conflict for what is gone meanwhile."""
    parts = command_parts(creator_of(task), OwnCode.from_json(task.own_code), run_id=run_id, inputs=inputs_of(task))
    return RunSpec(
        kind="evaluation",
        program=None,
        parameters={},
        argv=parts.argv,
        environment=parts.environment,
        mounts=parts.mounts,
        work=parts.work,
        start_in=parts.start_in,
        image=image_of_run(task.image_version, field="image") if task.image_version else None,
        resources=Resources(**task.resources),
        limits=Limits(time_limit_s=task.time_limit_s or DEFAULT_TIME_LIMIT_S),
    )


def inputs_of(task: EvaluationTask) -> Inputs:
    """Folders of the owner's files, or versions of data sets and models in their place."""
    inputs = local_inputs(creator_of(task), OwnCode.from_json(task.own_code))
    if task.dataset_version is not None:
        rows = data_inputs(None, None, str(rows_path(task.dataset_version)))
        inputs = replace(inputs, input_dir=rows.input_dir, mounts=inputs.mounts + rows.mounts, work=rows.work)
    version = task.model_version
    if version is not None:
        folders = [version.path] + ([version.base_version.path] if version.base_version else [])
        mounts = tuple(Mount(str(path)) for path in folders)
        inputs = replace(inputs, model_dir=str(version.path), mounts=inputs.mounts + mounts)
    return inputs


def finish_own_code(run: Run, task: EvaluationTask) -> None:
    """Take the metrics out of a completed run's output, and make its files the owner's.

    Raises Invalid (``bad_output``) for metrics that can not be read, StorageFull when the files do not fit.
    """
    if run.state == RunState.COMPLETED:
        EvaluationTask.objects.filter(pk=task.pk).update(results=collected(run.pk))
    publish(creator_of(task), run, OwnCode.from_json(task.own_code))


def collected(run_id: UUID) -> dict[str, Any]:
    """``{"metrics": {name: value}, "sources": {name: file}, "files": how many there were}``. Raises Invalid."""
    metrics: dict[str, float] = {}
    sources: dict[str, str] = {}
    listed = [file for file in list_output(run_id, 10_000) if file[0] != folder.MANIFEST]
    readable = [path for path, size in listed if path.lower().endswith(RESULT_ENDINGS) and size <= MAX_RESULT_BYTES]
    for path in readable[:MAX_RESULT_FILES]:
        try:
            found = metrics_of(path, read_output(run_id, path, MAX_RESULT_BYTES))
        except NotFound:  # swapped for something else since it was listed
            continue
        for name, value in found.items():
            if name not in metrics and len(metrics) < MAX_METRICS:
                metrics[name], sources[name] = value, path
    return {"metrics": metrics, "sources": sources, "files": len(listed)}
