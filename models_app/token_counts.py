"""Token statistics of a data set version under a model's tokenizer and template, by a run."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from clavier.accounts.access import require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid
from clavier.runs.outputs import read_json
from datasets_app.models import DatasetVersion, DataTask
from datasets_app.queries import access_dataset_version
from datasets_app.services import rows_path
from datasets_app.tasks import start_program, tasks_of
from models_app.models import ModelVersion
from models_app.services import access_model_version, require_usable
from runner.contract.run_spec import Resources

PROGRAM = "runner.programs.data.tokens"
LENGTHS = "output/lengths.json"
MAX_LENGTH = 100_000_000


def count_tokens(
    *, actor: Actor, version: DatasetVersion, model_version: UUID | str, max_length: int | None = None
) -> DataTask:
    """The count of this version under that model: the one there is, or a run that counts.

    ``max_length``: judged in the report besides the usual lengths. Raises NotFound, Forbidden, Invalid, Conflict.
    """
    require_write(actor)
    found = access_dataset_version(actor, version.pk)
    model = access_model_version(actor, model_version)
    require_usable(model)
    if found.kind == "table":
        raise Invalid(
            f"{found} holds a table; only rows of a known kind become samples. Upload it with a mapping.",
            code="missing_column",
            field="version",
        )
    known = counts_of(actor, found, model).exclude(state="failed").first()
    if known is not None:
        return known
    folder = tokenizer_folder(model)
    rows = str(rows_path(found))
    return start_program(
        actor,
        kind="tokens",
        dataset=found.dataset,
        version=found,
        subject=str(model.pk),
        program=PROGRAM,
        parameters={
            "rows": rows,
            "model": folder,
            "num_rows": found.num_samples,
            "max_lengths": [max_length] if max_length else [],
        },
        request={"model_version": str(model.pk), "model": str(model)},
        folders=(rows, folder),
        resources=Resources(cpu_milli=1000, memory_mib=2048),
    )


def counts_of(actor: Actor, version: DatasetVersion, model: ModelVersion | None = None) -> QuerySet[DataTask]:
    """The counts of a version, newest first; ``model``: only those under it."""
    wanted = Q(kind="tokens") & (Q(subject=str(model.pk)) if model else Q())
    return tasks_of(actor, version=version.pk).filter(wanted)


def lost_at(task: DataTask, max_length: int) -> dict[str, Any]:
    """``{max_length, longer, lost_truncate, lost_drop}`` for any length. Raises Invalid, Conflict (``not_ready``)."""
    if not 1 <= max_length <= MAX_LENGTH:
        raise Invalid(f"max_length must be from 1 to {MAX_LENGTH:,}.", code="out_of_range", field="max_length")
    if task.kind != "tokens" or task.state != "done":
        raise Conflict("There is no finished count of tokens to read that from.", code="not_ready")
    listed = next((item for item in task.result.get("at", ()) if item["max_length"] == max_length), None)
    if listed is not None:
        return dict(listed)
    known = read_json(task.run_id, LENGTHS) if task.run_id else None
    if known is None:
        raise Conflict("The count's files are gone; delete it and count again.", code="not_ready")
    learned = max(1, sum(known["learned_at"]))
    dropped = sum(number for size, number in known["learned_of_length"] if size > max_length)
    return {
        "max_length": max_length,
        "longer": sum(number for size, number in known["lengths"] if size > max_length),
        "lost_truncate": round(sum(known["learned_at"][max_length:]) / learned, 6),
        "lost_drop": round(dropped / learned, 6),
    }


def tokenizer_folder(model: ModelVersion) -> str:
    """Where the tokenizer lies: with the version, or with its base."""
    if (model.path / "tokenizer.json").is_file() or model.base_version is None:
        return str(model.path)
    return str(model.base_version.path)
