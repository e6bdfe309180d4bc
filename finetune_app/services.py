"""Create, start, stop, retry and delete fine-tuning tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from django.db import IntegrityError, transaction

from clavier.accounts.access import access_object, lock_object, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, quoted
from clavier.core.problems import Problems
from clavier.runs.models import Run
from clavier.runs.options import with_options
from clavier.runs.own_code import SPLITS, OwnCode
from clavier.runs.services import delete_run, stop_run, submit_run
from clavier.runs.states import RunState
from datasets_app.services import rows_path
from finetune_app.changes import carried
from finetune_app.estimate import Estimate
from finetune_app.forecast import forecast, require_fit
from finetune_app.ingredients import checked_ingredients, recheck
from finetune_app.models import FineTuneTask, SearchTrial
from finetune_app.own_code import own_code_spec
from finetune_app.resume import RESUME_FROM, earlier_checkpoints
from finetune_app.tokenizers import tokenizer_path
from models_app.models import ModelVersion
from models_app.services import check_model_name
from models_app.staging import stage_folders
from runner.contract.knobs import RECIPES
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

PROGRAMS = {recipe: f"runner.programs.train.{recipe}" for recipe in RECIPES}
DEFAULT_TIME_LIMIT_S = 7 * 24 * 3600


def create_fine_tune_task(
    *,
    actor: Actor,
    name: str,
    time_limit_s: int | None = None,
    output_model_name: str = "",
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
    config: str = "",
    claims_name: bool = False,
    start: bool = True,
    **given: Any,
) -> FineTuneTask:
    """A task, started at once unless ``start`` is False.

    ``given``: recipe, method, data, base, hyperparameters and where it runs, as ``checked_ingredients`` takes them;
    ``submitted``: the client's own words; ``config``: the YAML that it was read from; ``claims_name``: its users tell
    tasks apart by name, so a name that is there already is refused.

    Raises InvalidFields with every bad field at once, NotFound for what the actor may not see, Forbidden, Conflict
    (``already_exists``), Unprocessable when no node could ever run it.
    """
    require_write(actor)
    problems = Problems()
    problems.check(check_model_name, name)
    if output_model_name:
        problems.check(check_model_name, output_model_name, field="output_model_name")
    made = checked_ingredients(actor, problems, **given)
    problems.end()
    with transaction.atomic():
        task = insert_task(
            actor,
            claims_name=claims_name,
            name=name,
            description=description,
            time_limit_s=time_limit_s or DEFAULT_TIME_LIMIT_S,
            output_model_name=output_model_name or name,
            submitted=dict(submitted or {}),
            config=config,
            **made,
        )
        if start:
            launch(actor, task)
    return task


def estimate_fine_tune_task(*, actor: Actor, **given: Any) -> Estimate | None:
    """What a task would need, before it exists; None where its model does not say enough.

    ``given``: as ``create_fine_tune_task`` takes it, and raises; a reward model may still be missing.
    """
    problems = Problems()
    made = checked_ingredients(actor, problems, may_lack_reward=True, **given)
    problems.end()
    return forecast(FineTuneTask(tenant_id=actor.tenant_id, created_by_id=actor.user_id, **made))


def start_fine_tune_task(*, actor: Actor, task: FineTuneTask) -> FineTuneTask:
    """Start a task that was only saved. Raises Conflict when it was started before, Forbidden."""
    require_change(actor, task, noun="task")
    with transaction.atomic():
        lock_object(task, noun="task")
        if task.run is not None:
            raise Conflict(f"The task was started before and is {task.run.state}; retry it.", code="already_started")
        launch(actor, task)
    return task


def stop_fine_tune_task(*, actor: Actor, task: FineTuneTask) -> FineTuneTask:
    """Stop the task's run. Raises Conflict when it has ended, Forbidden."""
    require_change(actor, task, noun="task")
    if task.run is None:
        raise Conflict("The task was never started.", code="already_ended")
    task.run = stop_run(run=task.run, actor_name=actor.username)
    return task


def retry_fine_tune_task(
    *,
    actor: Actor,
    task: FineTuneTask,
    hyperparameters: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    time_limit_s: int | None = None,
    method: str = "",
    resume: bool = True,
) -> FineTuneTask:
    """A new run of a task whose last one failed or was stopped, with what is given changed.

    ``method``: of a task of a recipe; hyperparameters that the new one takes besides get their defaults.
    It goes on from the newest checkpoint where hyperparameters and number of processes are the same; ``resume`` False:
    from the start.

    Raises Conflict for a task in another state, InvalidFields for a change, Forbidden.
    """
    require_change(actor, task, noun="task")
    with transaction.atomic():
        lock_object(task, noun="task")
        if task.run is None or task.run.state not in (RunState.FAILED, RunState.STOPPED):
            state = task.run.state if task.run else "not started"
            raise Conflict(f"Only a failed or stopped task can be retried; this one is {state}.", code="not_retriable")
        task.hyperparameters = {**task.hyperparameters, **(hyperparameters or {})}
        task.resources = {**task.resources, **(resources or {})}
        task.time_limit_s = time_limit_s or task.time_limit_s
        if method in RECIPES.get(task.recipe, ()) and task.create_way == "system":
            task.hyperparameters = carried(task.recipe, method, task.hyperparameters)
        task.method = (task.create_way == "system" and method) or task.method
        recheck(task)
        task.save(update_fields=["hyperparameters", "resources", "time_limit_s", "method", "updated_at"])
        launch(actor, task, resume=resume)
    return task


def delete_fine_tune_task(*, actor: Actor, task: FineTuneTask) -> None:
    """Delete a task with its runs and logs. Raises Conflict while it runs or its model version exists, Forbidden."""
    require_change(actor, task, noun="task")
    with transaction.atomic():
        lock_object(task, noun="task")
        runs = list(Run.objects.filter(kind="fine_tune", subject_id=task.pk))
        for run in runs:
            if not run.is_final:
                raise Conflict(f"The task is {run.state}; stop it first.", code="in_use")
        trial = SearchTrial.objects.filter(task=task).select_related("search").first()
        if trial is not None:
            raise Conflict(f"The task is {trial}; delete the search first.", code="in_use")
        version = ModelVersion.objects.filter(run__in=runs).select_related("model").first()
        if version is not None:
            raise Conflict(f"The task made the model version {version}; delete that first.", code="in_use")
        task.delete()
        for run in runs:
            delete_run(run=run)


def access_fine_tune_task(actor: Actor, task_id: UUID | str) -> FineTuneTask:
    """The actor's tenant's task. Raises NotFound."""
    queryset = FineTuneTask.objects.select_related(
        "run",
        "base_version__model",
        "reward_version__model",
        "reward_version__base_version",
        "train_dataset__dataset",
        "validation_dataset__dataset",
        "created_by",
        "tenant",
        "image_version__image",
    )
    return access_object(queryset, actor, task_id, noun="task")


def insert_task(actor: Actor, *, claims_name: bool, name: str, **columns: Any) -> FineTuneTask:
    """The row of a new task. Raises Conflict (``already_exists``) where it claims a name that is there already.

    The look comes first, for the names that nobody has claimed; of two who claim one at once, the database lets one.
    """
    if claims_name and FineTuneTask.objects.filter(tenant_id=actor.tenant_id, name=name).exists():
        raise name_taken(name)
    try:
        with transaction.atomic():
            return FineTuneTask.objects.create(
                tenant_id=actor.tenant_id,
                created_by_id=actor.user_id,
                name=name,
                claimed_name=name if claims_name else None,
                **columns,
            )
    except IntegrityError as error:
        if claims_name and FineTuneTask.objects.filter(tenant_id=actor.tenant_id, claimed_name=name).exists():
            raise name_taken(name) from error
        raise


def name_taken(name: str) -> Conflict:
    """The refusal of a name that another task has."""
    message = f"name: there is a task {quoted(name)} already. Choose another name."
    return Conflict(message, code="already_exists", field="name")


def launch(actor: Actor, task: FineTuneTask, *, resume: bool = False) -> None:
    """Submit a run of the task and make it the task's newest; one before it fetches what lies in object stores.

    ``resume``: a recipe goes on from the checkpoints of a run before.
    """
    if task.create_way == "custom" and launch_staging(actor, task):
        return
    run_id = uuid4()
    task.estimate = require_fit(task, run_id) if task.create_way == "system" else {}
    made = own_code_spec(task, run_id) if task.create_way == "custom" else recipe_spec(task, resume=resume)
    spec = with_options(made, task.options)
    task.run = submit_run(actor=actor, kind="fine_tune", name=task.name, subject_id=task.pk, spec=spec, run_id=run_id)
    task.save(update_fields=["run", "estimate", "updated_at"])


def launch_staging(actor: Actor, task: FineTuneTask) -> bool:
    """Submit the run that fetches the task's folders from object stores. False: there is nothing to fetch."""
    code = OwnCode.from_json(task.own_code)
    staged = stage_folders(actor, code, kind="fine_tune", name=task.name, subject_id=task.pk, splits=SPLITS)
    if staged is None:
        return False
    task.run, code = staged
    task.own_code = code.to_json()
    task.save(update_fields=["run", "own_code", "updated_at"])
    return True


def recipe_spec(task: FineTuneTask, *, resume: bool = False) -> RunSpec:
    """Everything the recipe's program needs, as plain data. ``resume``: with the checkpoints of a run before."""
    base, train, validation = task.base_version, task.train_dataset, task.validation_dataset
    if train is None:
        raise ValueError(f"task {task.pk} of a recipe has no training data")
    train_path = str(rows_path(train))
    validation_path = str(rows_path(validation)) if validation else None
    mounts = [Mount(train_path)] + [Mount(path) for path in (validation_path, str(base.path) if base else None) if path]
    reward = folders_of(task.reward_version) if task.reward_version else {}
    tokenizer = tokenizer_path(task)
    mounts += [Mount(path) for path in (*reward.values(), tokenizer) if path]
    parameters: dict[str, Any] = {
        "base_model": str(base.path) if base else None,
        "train_data": [train_path] if task.is_pretrain else train_path,
        "validation_data": validation_path,
        "reward_model": reward or None,
        "tokenizer": tokenizer,
        "num_processes": max(1, task.resources.get("gpus", 0)),
        "method": task.method,
        "hyperparameters": task.hyperparameters,
        "model_name": task.output_model_name,
        "lineage": lineage_of(task),
    }
    earlier = earlier_checkpoints(task, parameters) if resume else None
    if earlier:
        parameters[RESUME_FROM] = earlier
        mounts.append(Mount(earlier))
    return RunSpec(
        kind="fine_tune",
        program=PROGRAMS[task.recipe],
        parameters=parameters,
        mounts=tuple(mounts),
        resources=Resources(**task.resources),
        limits=Limits(time_limit_s=task.time_limit_s),
        preemptible=True,  # every recipe goes on from its newest sealed checkpoint
    )


def folders_of(version: ModelVersion) -> dict[str, str | None]:
    """Where a version lies: its model, and the adapter where it is one."""
    if version.format == "adapter" and version.base_version is not None:
        return {"model": str(version.base_version.path), "adapter": str(version.path)}
    return {"model": str(version.path), "adapter": None}


def lineage_of(task: FineTuneTask) -> dict[str, Any]:
    """What the model card tells of where the version came from."""
    base, train = task.base_version, task.train_dataset
    return {
        "task": task.name,
        "task_id": str(task.pk),
        "recipe": task.recipe,
        "method": task.method,
        "base_model": str(base) if base else None,
        "base_fingerprint": base.fingerprint if base else None,
        **({"reward_model": str(task.reward_version)} if task.reward_version else {}),
        **({"tokenizer": task.tokenizer} if task.tokenizer else {}),
        "dataset": str(train) if train else None,
        "dataset_sha256": train.sha256 if train else None,
        "num_samples": train.num_samples if train else None,
    }
