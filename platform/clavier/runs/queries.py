"""What pages and dialects show of runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, DateTimeField, ExpressionWrapper, Q, QuerySet
from django.db.models.functions import Now

from clavier.accounts.access import access_object, require_operator, require_write
from clavier.core.actor import Actor
from clavier.core.errors import NotFound
from clavier.runs import outputs
from clavier.runs.models import Attempt, Lease, Peer, Run, RunEvent
from clavier.runs.planner import Candidate, Group, order_of
from clavier.runs.selection import candidate_of
from clavier.runs.states import LIVE_STATES, RunState
from clavier.runs.world import read_world
from runner.contract.run_spec import Resources

RECONCILER_LEASE = "reconciler"
HEARTBEAT_GRACE = timedelta(seconds=10)
TAIL_BYTES = 64 * 1024


def visible_runs(actor: Actor) -> QuerySet[Run]:
    """Runs of the actor's tenant."""
    return Run.objects.filter(tenant_id=actor.tenant_id)


def access_run(actor: Actor, run_id: UUID | str) -> Run:
    """A run of the actor's tenant with its attempts. Raises NotFound."""
    runs = Run.objects.select_related("created_by").prefetch_related("attempts__node", "attempts__peers__node")
    return access_object(runs, actor, run_id, noun="run")


def operated_run(actor: Actor, run_id: UUID | str) -> Run:
    """A run of any tenant that an operator may change. Raises NotFound for a stranger, Forbidden for other users."""
    if not actor.is_operator:
        access_run(actor, run_id)
        require_write(actor)
    require_operator(actor, to_write=True)
    runs = Run.objects.select_related("created_by").prefetch_related("attempts__node", "attempts__peers__node")
    found = runs.filter(pk=run_id).first()
    if found is None:
        raise NotFound("There is no such run.")
    return found


def counts_by_state(actor: Actor, kind: str | None = None) -> dict[str, int]:
    """State -> number of runs of the actor's tenant."""
    runs = visible_runs(actor).filter(**({"kind": kind} if kind else {}))
    return dict(runs.values_list("state").annotate(number=Count("pk")).order_by())


def position(run: Run) -> int | None:
    """How many runs of its group would start before it, plus one, as of now; None when it does not wait."""
    if run.state != RunState.PENDING:
        return None
    groups = read_world(run.resource_group).groups
    group = groups[0] if groups else Group(run.resource_group, [])
    mine = order_of(candidate_of(run), group)
    waiting = Run.objects.filter(state=RunState.PENDING, resource_group=run.resource_group).order_by()
    older = Q(created_at__lt=run.created_at) | Q(created_at=run.created_at, pk__lt=run.pk)
    earlier = waiting.filter(Q(priority__gt=run.priority) | Q(priority=run.priority) & older)
    before = sum(count for order, count in counts_by_order(waiting, group) if order < mine[:3])
    return 1 + before + sum(count for order, count in counts_by_order(earlier, group) if order == mine[:3])


def counts_by_order(waiting: QuerySet[Run], group: Group) -> list[tuple[tuple[bool, bool, float], int]]:
    """The first three parts of the order of admission, and how many runs there are with it."""
    keys = ("is_urgent", "tenant_id", "cpu_milli", "memory_mib", "gpus")
    found = []
    for urgent, tenant, *amounts, count in waiting.values_list(*keys).annotate(Count("pk")):
        alike = Candidate(tenant, group.name, tenant, tenant, ((amounts[0], amounts[1], amounts[2]),), urgent)
        found.append((order_of(alike, group)[:3], count))
    return found


def events(run: Run) -> QuerySet[RunEvent]:
    """What happened to the run, in order."""
    return RunEvent.objects.filter(run=run).order_by("pk")


def progress(run_id: UUID) -> dict[str, Any]:
    """The newest phase and progress that the program reported: ``{phase, step, total_steps, eta_s, ...}``."""
    found: dict[str, Any] = {}
    recent, _ = outputs.read_metrics(run_id, -TAIL_BYTES)
    for event in recent:
        if event.get("kind") in ("phase", "progress", "metric", "error"):
            found[str(event["kind"])] = event
    return found


def reconciler_is_alive() -> bool:
    """A reconciler leads, or did a moment ago: one that waits for a slow engine may let its lease end meanwhile."""
    long_ago = ExpressionWrapper(Now() - HEARTBEAT_GRACE, output_field=DateTimeField())
    return Lease.objects.filter(name=RECONCILER_LEASE, expires_at__gt=long_ago).exists()


def replayed_state(run: Run) -> str:
    """The state that the run's events lead to (I10)."""
    last = RunEvent.objects.filter(run=run).exclude(to_state="").last()
    return last.to_state if last else ""


def waiting_runs() -> QuerySet[Run]:
    """PENDING runs whose time has come."""
    due = Q(not_before=None) | Q(not_before__lte=Now())
    return Run.objects.filter(due, state=RunState.PENDING).order_by("created_at")


def holding_attempts(actor: Actor) -> QuerySet[Attempt]:
    """Live attempts of the actor's tenant, which hold what their runs asked for; oldest first."""
    attempts = Attempt.objects.filter(ended_at=None, run__tenant_id=actor.tenant_id)
    return attempts.select_related("run__created_by", "node").order_by("created_at", "pk")


def live_runs() -> QuerySet[Run]:
    """Runs that have not ended."""
    return Run.objects.filter(state__in=LIVE_STATES)


def live_attempts_of(scope: str, owner_id: UUID) -> list[tuple[UUID, list[Resources]]]:
    """Id and each container's resources of every live attempt of a tenant or user, or on a node (there only).

    The attempts can not end before the caller's transaction does.
    """
    owner = {
        "tenant": Q(run__tenant_id=owner_id),
        "user": Q(run__created_by_id=owner_id),
        "node": Q(node_id=owner_id) | Q(pk__in=Peer.objects.filter(node_id=owner_id).values("attempt_id")),
    }[scope]
    attempts = Attempt.objects.select_for_update(of=("self",)).filter(owner, ended_at=None).order_by("pk")
    found = []
    for attempt in attempts.select_related("run").prefetch_related("peers"):
        nodes = [attempt.node_id, *(peer.node_id for peer in attempt.peers.all())]
        roles = zip(nodes, attempt.run.run_spec().containers(), strict=True)
        found.append((attempt.pk, [role.resources for node, role in roles if scope != "node" or node == owner_id]))
    return found
