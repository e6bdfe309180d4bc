"""Starting attempts: reservation, PENDING -> PREPARING and the attempt's rows in one transaction, for one or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from django.db import transaction
from django.db.models import F, Max, OuterRef, Subquery
from django.utils import timezone

from clavier.core.sql import insert
from clavier.quotas.bulk import Wanted, reserve_all
from clavier.quotas.models import Node
from clavier.quotas.services import Placement, Shortage, reserve
from clavier.runs.elsewhere import placements_of
from clavier.runs.models import Attempt, Peer, Run, RunEvent
from clavier.runs.selection import specs_of
from clavier.runs.services import note, transition
from clavier.runs.states import RunState
from runner.contract.run_spec import Resources


def begin_attempt(*, run: Run, nodes: Sequence[Node]) -> Attempt | Shortage | None:
    """Start a run, rank by rank on these nodes, all or nothing; None: someone was faster."""
    with transaction.atomic():
        number = (Attempt.objects.filter(run=run).aggregate(last=Max("number"))["last"] or 0) + 1
        attempt = Attempt(run=run, number=number, node=nodes[0])
        reserved = reserve(
            attempt_id=attempt.pk,
            tenant_id=run.tenant_id,
            user_id=run.created_by_id,
            placements=placements_of(run.run_spec(), nodes),
        )
        if isinstance(reserved, Shortage):
            return reserved
        if not transition(run, RunState.PREPARING):
            transaction.set_rollback(True)
            return None
        attempt.save(force_insert=True)
        Peer.objects.bulk_create(peers_of(attempt, nodes))
    return attempt


def begin_attempts(admissions: Mapping[UUID, Sequence[Node]]) -> list[Attempt] | None:
    """Start many runs in a few statements; whoever does not wait any more is left out. None: something was short.

    Call inside a transaction, which is rolled back when something was short.
    """
    now = timezone.now()
    last = Attempt.objects.filter(run=OuterRef("pk")).order_by("-number").values("number")[:1]
    waiting = list(
        Run.objects.select_for_update(of=("self",))
        .filter(pk__in=admissions, state=RunState.PENDING)
        .order_by("pk")
        .values_list("pk", "tenant_id", "created_by_id", "num_containers", "spec__resources", Subquery(last))
    )
    ids = [pk for pk, *_ in waiting]
    special = specs_of([pk for pk, _, _, num_containers, *_ in waiting if num_containers > 1])
    attempts, wanted = [], []
    for pk, tenant_id, user_id, _, resources, number in waiting:
        nodes = admissions[pk]
        attempt = Attempt(run_id=pk, number=(number or 0) + 1, node=nodes[0], created_at=now)
        places = [Placement(0, nodes[0], Resources(**resources))]
        if pk in special:
            places = placements_of(special[pk], nodes)
        attempts.append(attempt)
        wanted.append(Wanted(attempt.pk, tenant_id, user_id, places))
    if not reserve_all(wanted):
        transaction.set_rollback(True)
        return None
    Run.objects.filter(pk__in=ids, state=RunState.PENDING).update(
        state=RunState.PREPARING, version=F("version") + 1, updated_at=now
    )
    insert(
        RunEvent,
        ("run", "at", "from_state", "to_state", "reason", "message", "actor_name"),
        [(pk, now, RunState.PENDING.value, RunState.PREPARING.value, "", "", "") for pk in ids],
    )
    insert(
        Attempt,
        ("id", "run", "number", "node", "created_at", "end_reason"),
        [(one.pk, one.run_id, one.number, one.node_id, now, "") for one in attempts],
    )
    Peer.objects.bulk_create(peer for one in attempts for peer in peers_of(one, admissions[one.run_id]))
    return attempts


def ask_to_leave(*, run_id: UUID, claimant_id: UUID) -> bool:
    """Ask a running run to make room; it is stopped by the reconciler and waits again. False: it ends anyway."""
    with transaction.atomic():
        asked = Attempt.objects.filter(
            run_id=run_id,
            ended_at=None,
            leave_asked_at=None,
            run__state__in=(RunState.PREPARING, RunState.RUNNING),
        ).update(leave_asked_at=timezone.now())
        if asked:
            note(Run.objects.get(pk=run_id), f"Asked to make room for run {claimant_id}, whose tenant wants its share.")
    return bool(asked)


def peers_of(attempt: Attempt, nodes: Sequence[Node]) -> list[Peer]:
    """The rows of rank 1 and up."""
    return [Peer(attempt=attempt, rank=rank, node=node) for rank, node in enumerate(nodes) if rank]
