"""What runs leave on the disk, charged to their owners: all of their folders, whatever program wrote there."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet, Sum

from clavier.files.usage import charge_anyway
from clavier.runs.models import Run, RunFolder
from clavier.runs.outputs import run_folder
from clavier.runs.states import FINAL_STATES
from runner.contract.trees import measure

logger = logging.getLogger(__name__)

#: Folders that one sweep counts.
MOST_AT_ONCE = 100


def count_folder(run_id: UUID) -> None:
    """Charge the owner of a run for what its folder takes now, in place of what it took when it was counted last.

    A limit holds nothing up here, for the files are there; what is over it keeps new files out. Raises OSError.
    """
    size_bytes, inodes = measure(run_folder(run_id))
    with transaction.atomic():
        run = Run.objects.select_for_update(of=("self",)).filter(pk=run_id).first()
        if run is None:
            return
        known, _ = RunFolder.objects.get_or_create(run=run)
        more = {"size_bytes": size_bytes - known.size_bytes, "inodes": inodes - known.inodes}
        known.size_bytes, known.inodes = size_bytes, inodes
        known.save()
        charge_anyway(tenant_id=run.tenant_id, user_id=run.created_by_id, **more)


def give_back_folder(run: Run) -> None:
    """A run is deleted with its folder. Call in the transaction that does so."""
    known = RunFolder.objects.filter(run=run).first()
    if known is not None:
        less = {"size_bytes": -known.size_bytes, "inodes": -known.inodes}
        charge_anyway(tenant_id=run.tenant_id, user_id=run.created_by_id, **less)


def count_left_out() -> None:
    """Some ended runs whose folders were never counted: a reconciler died in between, or an older version ran them."""
    for run_id in Run.objects.filter(state__in=FINAL_STATES, folder=None).values_list("pk", flat=True)[:MOST_AT_ONCE]:
        try:
            count_folder(run_id)
        except OSError as error:
            logger.warning("the folder of run %s can not be counted: %s", run_id, error)


def stored_folders() -> QuerySet[Any, Any]:
    """Rows of (tenant, user, bytes, inodes): what run folders are charged with."""
    return (
        RunFolder.objects.order_by()
        .values("run__tenant_id", "run__created_by_id")
        .annotate(size=Sum("size_bytes"), entries=Sum("inodes"))
        .values_list("run__tenant_id", "run__created_by_id", "size", "entries")
    )
