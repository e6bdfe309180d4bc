"""What a run has fetched or made goes through the gate and becomes a version."""

from __future__ import annotations

import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from clavier.accounts.access import creator_of
from clavier.core.errors import DomainError, NotFound, TooLarge, quoted
from clavier.core.paths import parse_path
from clavier.files.models import MIB
from clavier.files.storage import disk_changes, make_root, refuse_low_disk
from clavier.runs.outputs import open_regular, run_folder
from datasets_app.labels import checked_labels
from datasets_app.models import Dataset, DatasetVersion, DataTask
from datasets_app.services import add_version, examined
from datasets_app.tasks import wake
from runner.contract import folder

logger = logging.getLogger(__name__)

#: A gate that has read for so long was killed.
CLAIM_ENDS_AFTER = timedelta(hours=6)
#: What a refusal keeps of its findings.
LISTED = 21


def take_in(task_id: str) -> None:
    """The gate over one task's file; the file is gone afterwards. May run twice: the second time it does nothing.

    One pass over a file of any size: the one job of the queue that may take longer than a minute.
    """
    now = timezone.now()
    free = Q(claimed_at=None) | Q(claimed_at__lt=now - CLAIM_ENDS_AFTER)
    mine = DataTask.objects.filter(free, pk=UUID(task_id), state="checking")
    if not mine.update(claimed_at=now):
        return
    task = DataTask.objects.select_related("created_by", "tenant", "dataset", "version", "plugin", "run").get(
        pk=task_id
    )
    try:
        version = made_version(task)
    except DomainError as refusal:
        problems = [{"code": problem.code, "message": problem.message} for problem in refusal.problems[:LISTED]]
        found = problems or [{"code": refusal.code, "message": refusal.message}]
        end(task, state="failed", message=found[0]["message"], result={"problems": found})
    except BaseException:
        # The disk or the database is at fault, not the file: the next sweep tries again.
        DataTask.objects.filter(pk=task.pk, state="checking").update(claimed_at=None)
        raise
    else:
        logger.info("data task %s made %s", task.pk, version)
    if task.run_id is not None:
        shutil.rmtree(run_folder(task.run_id) / folder.OUTPUT, ignore_errors=True)


def wake_waiting() -> None:
    """Wake every task whose file waits for the gate and is not being read."""
    stale = Q(claimed_at=None) | Q(claimed_at__lt=timezone.now() - CLAIM_ENDS_AFTER)
    for task in DataTask.objects.filter(stale, state="checking"):
        wake(task)


def made_version(task: DataTask) -> DatasetVersion:
    """The next version of the task's data set, out of its run's file. Raises DomainError."""
    actor, asked = creator_of(task), task.request
    name = str(asked["file_name"])
    described: dict[str, Any] = {"step": task.kind, "task": str(task.pk), **origin_of(task)}
    with (
        open_output(task, name) as source,
        examined(
            actor,
            lambda original: copy_to(source, original),
            parse_path(name)[-1],
            purpose=str(asked.get("purpose") or ""),
            mapping=asked.get("mapping"),
        ) as checked,
        disk_changes(settings.CLAVIER_DATASETS) as disk,
        transaction.atomic(durable=True),
    ):
        locked = Dataset.objects.select_for_update().filter(pk=task.dataset_id).first()
        if locked is None:
            raise NotFound(f"There is no data set {quoted(str(task.dataset_id))}.")
        labels = checked_labels(str(asked.get("split") or ""), str(asked.get("subset") or ""))
        version = add_version(actor, locked, checked, disk, parent=task.version, steps=[described], **labels)
        end(task, state="done", made_version=version)
    return version


def origin_of(task: DataTask) -> dict[str, Any]:
    """Where a version came from, as it says of itself."""
    wanted = ("source", "location", "plugin", "parameters")
    return {name: task.request[name] for name in wanted if name in task.request}


def open_output(task: DataTask, name: str) -> Any:
    """The run's file. Raises NotFound, TooLarge, StorageFull."""
    if task.run_id is None:
        raise NotFound("The task's run was deleted.")
    try:
        stream = open(open_regular(task.run_id, (folder.OUTPUT, *parse_path(name))), "rb")  # noqa: SIM115
    except NotFound as missing:
        raise NotFound(
            f"The run ended without output/{name}. A plugin must write its rows there.", code="no_output"
        ) from missing
    size = os.fstat(stream.fileno()).st_size
    try:
        if size > settings.MAX_UPLOAD_MIB * MIB:
            raise TooLarge(
                f"{name} has {size / MIB:,.0f} MiB; {settings.MAX_UPLOAD_MIB:,} MiB are allowed.", code="file_too_large"
            )
        make_root(settings.CLAVIER_DATASETS)
        # The file, and its rows once more where it is not JSONL.
        refuse_low_disk(settings.CLAVIER_DATASETS, 2 * size, None)
    except DomainError:
        stream.close()
        raise
    return stream


def copy_to(source: Any, original: Path) -> None:
    """Copied, not linked: what the program still holds open must not change what was checked."""
    with open(original, "xb") as target:
        shutil.copyfileobj(source, target, MIB)


def end(task: DataTask, **columns: Any) -> None:
    """Set how a task that was being checked has ended."""
    DataTask.objects.filter(pk=task.pk, state="checking").update(updated_at=timezone.now(), **columns)
