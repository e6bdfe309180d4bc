"""Create, stop, retry and delete evaluations; take in their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction

from clavier.accounts.access import access_object, creator_of, lock_object, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, quoted
from clavier.runs.models import Run
from clavier.runs.options import checked_options, with_options
from clavier.runs.outputs import read_json
from clavier.runs.own_code import OwnCode
from clavier.runs.services import checked_resources, delete_run, stop_run, submit_run
from clavier.runs.states import RunState
from datasets_app.queries import access_dataset_version
from datasets_app.services import rows_path
from evaluation_app.models import EvaluationTask, Score
from evaluation_app.own_code import finish_own_code, own_code_spec
from models_app.models import ModelVersion
from models_app.services import access_model_version, check_model_name, require_task, require_usable
from models_app.staging import forget_logins, is_staging, stage_folders
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

PROGRAM = "runner.programs.evaluate.questions"
METRICS = ("exact_match", "rouge_l", "bleu")
QUESTION_KINDS = ("messages", "instruction", "question_answer", "question_reference", "prompt_completion")
MAX_NEW_TOKENS = 4096
DEFAULT_TIME_LIMIT_S = 24 * 3600


def create_evaluation_task(
    *,
    actor: Actor,
    name: str,
    model_version: UUID | str,
    dataset_version: UUID | str,
    metrics: list[str] | None = None,
    max_new_tokens: int = 64,
    limit: int | None = None,
    resources: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    time_limit_s: int | None = None,
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
) -> EvaluationTask:
    """An evaluation, started at once. ``submitted``: the request as its client wrote it.

    Raises Invalid, NotFound, Conflict, Forbidden.
    """
    require_write(actor)
    check_model_name(name)
    version = access_model_version(actor, model_version)
    require_usable(version)
    require_task(version, "generation", purpose="an evaluation by questions")
    questions = access_dataset_version(actor, dataset_version, field="dataset_version")
    if questions.kind not in QUESTION_KINDS:
        raise Invalid(
            f"dataset_version {questions} holds rows of the kind {questions.kind}; "
            f"questions come as {', '.join(QUESTION_KINDS)}.",
            code="missing_column",
            field="dataset_version",
        )
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise Invalid(
            f"max_new_tokens {max_new_tokens} is not from 1 to {MAX_NEW_TOKENS}.",
            code="out_of_range",
            field="max_new_tokens",
        )
    where = checked_options(options or {})
    with transaction.atomic():
        task = EvaluationTask.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            name=name,
            description=description,
            model_version=version,
            dataset_version=questions,
            metrics=checked_metrics(metrics),
            decoding={"max_new_tokens": max_new_tokens},
            limit=limit,
            resources=checked_resources(resources or {}, resource_group=where.get("resource_group", "")),
            options=where,
            time_limit_s=time_limit_s,
            submitted=dict(submitted or {}),
        )
        launch(actor, task)
    return task


def stop_evaluation_task(*, actor: Actor, task: EvaluationTask) -> EvaluationTask:
    """Stop the evaluation's run. Raises Conflict when it has ended, Forbidden."""
    require_change(actor, task, noun="evaluation")
    if task.run is None:
        raise Conflict("The evaluation was never started.", code="already_ended")
    task.run = stop_run(run=task.run, actor_name=actor.username)
    return task


def retry_evaluation_task(*, actor: Actor, task: EvaluationTask) -> EvaluationTask:
    """A new run of a failed or stopped evaluation. Raises Conflict otherwise, Forbidden."""
    require_change(actor, task, noun="evaluation")
    with transaction.atomic():
        lock_object(task, noun="evaluation")
        if task.run is None or task.run.state not in (RunState.FAILED, RunState.STOPPED):
            raise Conflict("Only a failed or stopped evaluation can be retried.", code="not_retriable")
        launch(actor, task)
    return task


def delete_evaluation_task(*, actor: Actor, task: EvaluationTask) -> None:
    """Delete an evaluation with its runs and results. Raises Conflict while it runs, Forbidden."""
    require_change(actor, task, noun="evaluation")
    with transaction.atomic():
        lock_object(task, noun="evaluation")
        runs = list(Run.objects.filter(kind="evaluation", subject_id=task.pk))
        if any(not run.is_final for run in runs):
            raise Conflict("The evaluation is running; stop it first.", code="in_use")
        task.delete()
        for run in runs:
            delete_run(run=run)


def access_evaluation_task(actor: Actor, task_id: UUID | str) -> EvaluationTask:
    """The actor's tenant's evaluation. Raises NotFound."""
    queryset = EvaluationTask.objects.select_related(
        "run",
        "model_version__model",
        "model_version__base_version__model",
        "dataset_version__dataset",
        "created_by",
        "tenant",
        "image_version__image",
    )
    return access_object(queryset, actor, task_id, noun="evaluation")


def on_run_finished(run: Run) -> None:
    """A completed run's scores become rows, own code's output files of its owner.

    Raises Invalid (``bad_output``) when scores or metrics can not be read, StorageFull when the files do not fit.
    """
    custom = EvaluationTask.objects.filter(pk=run.subject_id, create_way="custom").first()
    if is_staging(run):
        forget_logins(run)
        if custom is not None and run.state == RunState.COMPLETED:
            launch(creator_of(custom), custom)
        return
    if custom is not None:
        finish_own_code(run, custom)
        return
    if run.state != RunState.COMPLETED:
        return
    task = EvaluationTask.objects.select_related("model_version__base_version").filter(pk=run.subject_id).first()
    if task is None or task.model_version is None:
        return
    results = read_json(run.pk, "output/scores.json")
    versions = dict(candidates_of(task.model_version))
    if results is None or set(results.get("scores", ())) != set(versions):
        raise Invalid("output/scores.json has no scores of every candidate.", code="bad_output")
    Score.objects.filter(evaluation=task).delete()
    Score.objects.bulk_create(
        Score(
            evaluation=task,
            model_version=versions[label],
            label=label,
            metric=metric,
            value=value,
            low=results["intervals"].get(label, {}).get(metric, (None, None))[0],
            high=results["intervals"].get(label, {}).get(metric, (None, None))[1],
            num_samples=results["num_samples"],
        )
        for label, metrics in results["scores"].items()
        for metric, value in metrics.items()
    )
    EvaluationTask.objects.filter(pk=task.pk).update(fingerprint=results.get("fingerprint", ""))


def launch(actor: Actor, task: EvaluationTask) -> None:
    """Submit a run of the evaluation and make it the newest; one before it fetches what lies in object stores."""
    if task.create_way == "custom" and launch_staging(actor, task):
        return
    run_id = uuid4()
    spec = own_code_spec(task, run_id) if task.create_way == "custom" else questions_spec(task)
    spec = with_options(spec, task.options)
    task.run = submit_run(actor=actor, kind="evaluation", name=task.name, subject_id=task.pk, spec=spec, run_id=run_id)
    task.save(update_fields=["run", "updated_at"])


def launch_staging(actor: Actor, task: EvaluationTask) -> bool:
    """Submit the run that fetches the evaluation's folders from object stores. False: there is nothing to fetch."""
    code = OwnCode.from_json(task.own_code)
    staged = stage_folders(actor, code, kind="evaluation", name=task.name, subject_id=task.pk)
    if staged is None:
        return False
    task.run, code = staged
    task.own_code = code.to_json()
    task.save(update_fields=["run", "own_code", "updated_at"])
    return True


def questions_spec(task: EvaluationTask) -> RunSpec:
    """Base and tuned model on the same questions. Raises ValueError for a task of own code."""
    if task.model_version is None or task.dataset_version is None:
        raise ValueError(f"evaluation {task.pk} has no model or no questions")
    candidates = [candidate_parameters(label, version) for label, version in candidates_of(task.model_version)]
    questions = str(rows_path(task.dataset_version))
    folders = {path for candidate in candidates for path in (candidate["model"], candidate["adapter"]) if path}
    return RunSpec(
        kind="evaluation",
        program=PROGRAM,
        parameters={
            "candidates": candidates,
            "questions": questions,
            "metrics": task.metrics,
            "decoding": task.decoding,
            "limit": task.limit,
        },
        mounts=tuple(Mount(path) for path in [questions, *sorted(folders)]),
        resources=Resources(**task.resources) if task.resources else Resources(cpu_milli=1000, memory_mib=4096),
        limits=Limits(time_limit_s=task.time_limit_s or DEFAULT_TIME_LIMIT_S),
    )


def candidates_of(version: ModelVersion) -> list[tuple[str, ModelVersion]]:
    """Always base beside tuned; a version without a base stands alone."""
    if version.base_version is None:
        return [("model", version)]
    return [("base", version.base_version), ("tuned", version)]


def candidate_parameters(label: str, version: ModelVersion) -> dict[str, Any]:
    """A candidate as the program reads it: the model's folder, and the adapter's where there is one."""
    if version.format == "adapter" and version.base_version is not None:
        return {"label": label, "model": str(version.base_version.path), "adapter": str(version.path)}
    return {"label": label, "model": str(version.path), "adapter": None}


def checked_metrics(metrics: list[str] | None) -> list[str]:
    """The metrics asked for, without repeats; all when none are named. Raises Invalid."""
    unknown = [metric for metric in metrics or [] if metric not in METRICS]
    if unknown:
        raise Invalid(
            f"metrics {quoted(unknown)} are none of {', '.join(METRICS)}.", code="not_a_choice", field="metrics"
        )
    return list(dict.fromkeys(metrics or METRICS))
