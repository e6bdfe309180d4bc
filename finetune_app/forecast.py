"""The estimate of a task from its rows in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from clavier.accounts.access import creator_of
from clavier.core.errors import NotFound, Unprocessable
from clavier.files.queries import storage_left_of
from clavier.files.storage import open_regular
from datasets_app.tasks import counted_tokens
from finetune_app.calibration import calibration_of
from finetune_app.estimate import BYTES_PER_TOKEN, MIB, Estimate, estimate, fewer_checkpoints
from finetune_app.machines import machine_of, roomiest
from finetune_app.models import FineTuneTask
from finetune_app.shapes import Job, Load, Shape, shape_of_config
from finetune_app.tokenizers import vocabulary_size
from models_app.models import ModelVersion
from runner.contract.knobs import NEW_MODEL_SHAPE

MAX_CONFIG_BYTES = 4 * 2**20


def forecast(task: FineTuneTask) -> Estimate | None:
    """What a task of our recipes will need; None where its model's configuration does not say enough."""
    shape = shape_of(task)
    if shape is None or task.train_dataset is None:
        return None
    machine, job, load = machine_of(task), job_of(task), load_of(task, shape)
    calibration = calibration_of(task.recipe, task.method, shape.num_parameters, on_gpu=machine.is_gpu)
    found = estimate(shape, job, load, machine, calibration)
    if found.verdict in ("fits", None):
        return found
    # How much more memory there is takes two queries, and matters only here.
    return estimate(shape, job, load, roomiest(machine, task), calibration)


def require_fit(task: FineTuneTask, run_id: UUID) -> dict[str, Any]:
    """The forecast of a run as its task keeps it, empty without one.

    Raises Unprocessable when even its lower bound is more than was asked for (``will_not_fit``), or than is left of the
    storage of its creator (``quota_exceeded``).
    """
    found = forecast(task)
    if found is None:
        return {}
    if found.verdict == "will_not_fit":
        where = "GPU memory" if found.on_gpu else "memory"
        advice = spoken(found.change) or "Use a smaller model or a larger machine."
        raise Unprocessable(
            f"This training needs {found.memory_mib.low:,.0f} to {found.memory_mib.high:,.0f} MiB of {where}; it has "
            f"{found.limit_mib:,} MiB. {advice}",
            code="will_not_fit",
            field=f"resources.{memory_field(task.resources)}",
        )
    require_room(task, found)
    return {"run": str(run_id), **found.as_json()}


def require_room(task: FineTuneTask, found: Estimate) -> None:
    """Raises Unprocessable (``quota_exceeded``) when the storage that is left can not take what will be written."""
    left = storage_left_of(task.tenant_id, task.created_by_id)["bytes"]
    shape = shape_of(task) if left is not None and found.disk_mib.low * MIB > left else None
    if shape is None:
        return
    change = fewer_checkpoints(shape, job_of(task), found.steps, left / MIB)
    advice = spoken(change) or "Delete files, data sets or models, or ask the operator."
    raise Unprocessable(
        f"This training writes at least {found.disk_mib.low:,.0f} MiB, and {left / MIB:,.0f} MiB of storage are left. "
        f"{advice}",
        code="quota_exceeded",
        field=f"hyperparameters.{next(iter(change))}" if change else "output_model_name",
    )


def spoken(change: Mapping[str, Any] | None) -> str:
    """A change as a sentence; empty where there is none."""
    values = ", ".join(f"{name} = {value}" for name, value in (change or {}).items())
    return f"It fits with {values}." if values else ""


def memory_field(resources: Mapping[str, Any]) -> str:
    """The resource that bounds the memory of a training."""
    asked = (name for name in ("gpu_memory_mib", "mig_profile", "gpus") if resources.get(name))
    return next(asked, "memory_mib")


def shape_of(task: FineTuneTask) -> Shape | None:
    """The base's shape, or that of the model a pretraining will make, whose vocabulary is that of its tokenizer."""
    if task.base_version is not None:
        return shape_of_version(task.base_version)
    knobs = {name: task.hyperparameters.get(name) or value for name, value in NEW_MODEL_SHAPE.items()}
    if task.tokenizer and not task.hyperparameters.get("vocab_size"):
        size = vocabulary_size(creator_of(task), task.tokenizer)
        return shape_of_config({**knobs, "vocab_size": size}, None) if size else None
    return shape_of_config(knobs, None)


def shape_of_version(version: ModelVersion) -> Shape | None:
    """What the version's own ``config.json`` says."""
    try:
        with open_regular(version.path, ("config.json",)) as stream:
            config = json.loads(stream.read(MAX_CONFIG_BYTES))
    except (NotFound, ValueError, OSError):
        return None
    return shape_of_config(config, version.num_parameters) if isinstance(config, dict) else None


def job_of(task: FineTuneTask) -> Job:
    """What is trained, and the size of the model that scores answers."""
    scorer = task.reward_version
    if scorer is not None and scorer.format == "adapter" and scorer.base_version is not None:
        scorer = scorer.base_version
    return Job(task.recipe, task.method, task.hyperparameters, (scorer.num_parameters or 0) if scorer else 0)


def load_of(task: FineTuneTask, shape: Shape) -> Load:
    """Rows and lengths in tokens: as they were counted with the base's tokenizer, else guessed from their bytes."""
    data, knobs = task.train_dataset, task.hyperparameters
    if data is None:
        raise ValueError(f"task {task.pk} has no training data")
    sizes = data.statistics.get("row_bytes") or {}
    mean, longest = (float(sizes.get(name) or 0) / BYTES_PER_TOKEN for name in ("mean", "max"))
    if knobs.get("sequence_length"):
        length = int(knobs["sequence_length"])
        return Load(max(1, round(mean * data.num_samples / length)), length, length)
    counted = counted_tokens(data, task.base_version_id) if task.recipe in ("sft", "seq2seq") else None
    share = 1.0
    if counted:
        mean, longest = float(counted["mean"]), float(counted["longest"])
        share = counted["learned"] / max(1, counted["tokens"])
    limit = int(knobs.get("max_seq_length") or 1024)
    limit = min(limit, shape.max_positions or limit)
    return Load(
        num_rows=data.num_samples,
        mean_tokens=max(1.0, min(limit, mean)),
        max_tokens=max(1, min(limit, round(longest))),
        longest_tokens=round(longest),
        learned_share=share,
        is_counted=bool(counted),
    )
