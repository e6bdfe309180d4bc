"""Runs that make or measure versions of data sets: started, watched, stopped, forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet

from clavier.accounts.access import access_object, require_change
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid
from clavier.images.logins import RegistryLogin, forget_login, login_path, write_login
from clavier.runs import queue
from clavier.runs.models import Run
from clavier.runs.outputs import read_json
from clavier.runs.services import delete_run, stop_run, submit_run
from clavier.runs.states import RunState
from datasets_app.models import Dataset, DatasetVersion, DataTask
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

TAKE_IN_JOB = "datasets_app.intake.take_in"
RESULT = "output/result.json"
DEFAULT_TIME_LIMIT_S = 24 * 3600
_RESOURCES = Resources(cpu_milli=1000, memory_mib=1024)


def start_program(
    actor: Actor,
    *,
    kind: str,
    dataset: Dataset,
    program: str,
    parameters: Mapping[str, Any],
    request: Mapping[str, Any],
    version: DatasetVersion | None = None,
    subject: str = "",
    folders: tuple[str, ...] = (),
    needs_network: bool = False,
    login: RegistryLogin | None = None,
    resources: Resources = _RESOURCES,
) -> DataTask:
    """A data task whose run is one of the platform's programs. The caller has checked what the actor may.

    ``folders``: what the program may read. ``login``: lies in a file that only this run can read, until it has ended.
    """
    with transaction.atomic():
        task = DataTask.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            kind=kind,
            dataset=dataset,
            version=version,
            request=dict(request),
            subject=subject,
        )
        if login is not None:
            place = str(login_path(task.pk))
            parameters, folders = {**parameters, "credentials": place}, (*folders, place)
        spec = RunSpec(
            kind="data",
            program=program,
            parameters=dict(parameters),
            mounts=tuple(Mount(path) for path in folders),
            resources=resources,
            limits=Limits(time_limit_s=DEFAULT_TIME_LIMIT_S),
            needs_network=needs_network,
        )
        started = submitted(actor, task, spec)
        if login is not None:  # last: a run that is refused leaves no key behind
            write_login(task.pk, login, own_tenant(actor).number)
        return started


def submitted(actor: Actor, task: DataTask, spec: RunSpec, run_id: UUID | None = None) -> DataTask:
    """The task with its run. Raises as ``submit_run``."""
    task.run = submit_run(actor=actor, kind="data", name=str(task)[:200], subject_id=task.pk, spec=spec, run_id=run_id)
    task.save(update_fields=["run", "updated_at"])
    return task


def tasks_of(actor: Actor, *, dataset: UUID | None = None, version: UUID | None = None) -> QuerySet[DataTask]:
    """The tenant's data tasks, newest first."""
    found = DataTask.objects.filter(tenant_id=actor.tenant_id)
    if dataset is not None:
        found = found.filter(dataset_id=dataset)
    if version is not None:
        found = found.filter(version_id=version)
    return found.select_related("created_by", "dataset", "version__dataset", "made_version__dataset", "plugin", "run")


def counted_tokens(version: DatasetVersion, model_version: UUID | None) -> dict[str, Any] | None:
    """The newest token statistics of a version under the tokenizer of a model version; None: never counted."""
    found = DataTask.objects.filter(kind="tokens", state="done", version=version, subject=str(model_version))
    return found.order_by("-created_at").values_list("result", flat=True).first()


def access_data_task(actor: Actor, task_id: UUID | str) -> DataTask:
    """The tenant's data task. Raises NotFound."""
    return access_object(tasks_of(actor), actor, task_id, noun="data task")


def stop_data_task(*, actor: Actor, task: DataTask) -> DataTask:
    """Stop its run. Raises Conflict when it has ended, Forbidden."""
    require_change(actor, task, noun="data task")
    if task.run is None or task.state != "running":
        raise Conflict("The task's run has ended already.", code="already_ended")
    task.run = stop_run(run=task.run, actor_name=actor.username)
    return access_data_task(actor, task.pk)


def delete_data_task(*, actor: Actor, task: DataTask) -> None:
    """Delete a task with its run; a version that it made stays. Raises Conflict while it runs, Forbidden."""
    require_change(actor, task, noun="data task")
    with transaction.atomic():
        forget_tasks(Q(pk=task.pk))


def forget_tasks(wanted: Q) -> None:
    """Delete tasks and their runs. Raises Conflict (``in_use``) while one is at work. In the caller's transaction."""
    tasks = list(DataTask.objects.filter(wanted).select_related("run", "dataset"))
    live = next((task for task in tasks if task.state in ("running", "checking")), None)
    if live is not None:
        raise Conflict(f"The task {live} ({live.pk}) has not ended; stop it first.", code="in_use")
    DataTask.objects.filter(pk__in=[task.pk for task in tasks]).delete()
    for run in [task.run for task in tasks if task.run is not None]:
        delete_run(run=run)


def on_run_finished(run: Run) -> None:
    """Measures are stored; what is to become a version waits for the gate. Raises Invalid (``bad_output``)."""
    task = DataTask.objects.filter(run=run).first()
    if task is None:
        return
    forget_login(task.pk)
    changed: dict[str, Any] = {}
    if run.state != RunState.COMPLETED:
        changed = {"state": "failed", "message": run.message}
    elif task.kind in ("fetch", "plugin"):
        changed = {"state": "checking"}
        transaction.on_commit(lambda: wake(task))
    else:
        result = read_json(run.pk, RESULT)
        if result is None:
            raise Invalid(f"The program left no {RESULT}.", code="bad_output")
        changed = {"state": "done", "result": result}
    DataTask.objects.filter(pk=task.pk).update(**changed)


def wake(task: DataTask) -> None:
    """Tell the queue that a file waits for the gate."""
    queue.enqueue(TAKE_IN_JOB, str(task.pk))
