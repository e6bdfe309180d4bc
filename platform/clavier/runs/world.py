"""What a scheduler pass reads: the groups as they are now, and those waiting runs that could matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import BigIntegerField, ExpressionWrapper, F, Q, QuerySet, Sum, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from clavier.quotas.models import Node, QuotaWindow, TenantShare, Usage
from clavier.runs.demand import SPECIAL, containers_of
from clavier.runs.models import Attempt, Run
from clavier.runs.placing import NOTHING, Amounts, NodeRoom, fits, minus, plus, total
from clavier.runs.planner import MAX_CLAIMS, UNLIMITED, Allowance, Candidate, Group, Holder, Share
from clavier.runs.states import ACTIVE_STATES, RunState
from runner.contract.run_spec import RunSpec

RESERVE_AFTER = timedelta(minutes=10)
#: A run that had to make room is left alone for so long.
COOL_OFF = timedelta(minutes=30)
#: More different gaps than that are asked for by their largest parts only.
MAX_GAPS = 40

COUNTED = ("cpu_milli", "memory_mib", "gpus")
OWNED = ("running_runs", *COUNTED)


@dataclass(slots=True)
class World:
    """The schedulable nodes by id, and their groups."""

    nodes: dict[UUID, Node] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)


def read_world(group_name: str | None = None) -> World:
    """All active groups, or one."""
    world = World()
    nodes = Node.objects.filter(is_schedulable=True, resource_group__is_active=True).select_related("resource_group")
    if group_name is not None:
        nodes = nodes.filter(resource_group__name=group_name)
    by_group: dict[str, list[NodeRoom]] = defaultdict(list)
    rows = node_rows()
    for node in nodes:
        world.nodes[node.pk] = node
        by_group[node.resource_group.name].append(room_of(node, rows.get(node.pk, {})))
    used, shares = used_by_tenant(by_group), nominal_shares(by_group)
    for name in sorted(by_group):
        world.groups.append(Group(name, by_group[name], shares.get(name, {}), used.get(name, {})))
    read_leaving(world)
    return world


def node_rows() -> dict[UUID, dict[str, tuple[int, int]]]:
    """Node -> resource -> (cap, used)."""
    found: dict[UUID, dict[str, tuple[int, int]]] = defaultdict(dict)
    rows = Usage.objects.filter(scope="node", resource__in=OWNED).values_list("scope_id", "resource", "cap", "used")
    for scope_id, resource, cap, used in rows:
        found[scope_id][resource] = (cap, used)
    return found


def room_of(node: Node, rows: dict[str, tuple[int, int]]) -> NodeRoom:
    """The node for the planner; where it has no cap it takes everything."""
    caps = [rows.get(name, (UNLIMITED, 0)) for name in COUNTED]
    capacity: Amounts = (caps[0][0], caps[1][0], caps[2][0])
    free: Amounts = (caps[0][0] - caps[0][1], caps[1][0] - caps[1][1], caps[2][0] - caps[2][1])
    runs_cap, runs_used = rows.get("running_runs", (UNLIMITED, 0))
    # Nodes that one engine serves, or that engines share a network between, can hold ranks of one gang.
    reach = f"network {node.engine_network}" if node.engine_network else f"{node.executor} {node.engine_url}"
    return NodeRoom(node.pk, node.name, free if runs_used < runs_cap else (-1, -1, -1), capacity, reach)


def used_by_tenant(groups: Iterable[str]) -> dict[str, dict[UUID, Amounts]]:
    """Group -> tenant -> what its live runs hold."""
    found: dict[str, dict[UUID, Amounts]] = defaultdict(dict)
    runs = Run.objects.filter(state__in=ACTIVE_STATES, resource_group__in=groups).order_by()
    for group, tenant, *sums in runs.values_list("resource_group", "tenant_id").annotate(
        Sum("cpu_milli"), Sum("memory_mib"), Sum("gpus")
    ):
        found[group][tenant] = (sums[0], sums[1], sums[2])
    return found


def nominal_shares(groups: Iterable[str]) -> dict[str, dict[UUID, Share]]:
    """Group -> tenant -> its nominal share."""
    found: dict[str, dict[UUID, Share]] = defaultdict(dict)
    rows = TenantShare.objects.filter(resource_group__name__in=groups)
    for group, tenant, may_borrow, *nominal in rows.values_list(
        "resource_group__name", "tenant_id", "may_borrow", *COUNTED
    ):
        found[group][tenant] = Share((nominal[0], nominal[1], nominal[2]), may_borrow)
    return found


def read_leaving(world: World) -> None:
    """What attempts that were asked to make room still hold."""
    groups = {group.name: group for group in world.groups}
    rooms = {node.id: node for group in world.groups for node in group.nodes}
    asked = Attempt.objects.filter(ended_at=None, leave_asked_at__isnull=False)
    for attempt in asked.select_related("run").prefetch_related("peers"):
        group = groups.get(attempt.run.resource_group)
        if group is None:
            continue
        for node_id, amounts in places_of(attempt):
            group.leaving[attempt.run.tenant_id] = plus(group.leaving.get(attempt.run.tenant_id, NOTHING), amounts)
            if node_id in rooms:
                rooms[node_id].leaving = plus(rooms[node_id].leaving, amounts)


def read_holders(group: Group, now: datetime) -> list[Holder]:
    """Running runs of the group that may be asked to make room."""
    rested = Q(run__preempted_at=None) | Q(run__preempted_at__lt=now - COOL_OFF)
    attempts = Attempt.objects.filter(
        rested,
        ended_at=None,
        leave_asked_at=None,
        run__resource_group=group.name,
        run__preemptible=True,
        run__state__in=(RunState.PREPARING, RunState.RUNNING),
        run__tenant__in=[tenant for tenant in group.used if group.is_borrowing(tenant)],
    )
    return [
        Holder(
            attempt.run_id,
            attempt.run.tenant_id,
            tuple(places_of(attempt)),
            attempt.run.is_urgent,
            attempt.run.priority,
            (attempt.started_at or attempt.created_at).timestamp(),
        )
        for attempt in attempts.select_related("run").prefetch_related("peers")
    ]


def places_of(attempt: Attempt) -> list[tuple[UUID, Amounts]]:
    """Node and amounts of each container."""
    nodes = [attempt.node_id, *(peer.node_id for peer in attempt.peers.all())]
    return list(zip(nodes, containers_of(attempt.run.run_spec()), strict=True))


def candidates_of(group: Group, now: datetime) -> list[Candidate]:
    """The waiting runs of a group that a plan could admit, hold nodes for or make room for; [] when none can.

    Runs of one owner and one shape are interchangeable but for their order. So of each such class only as many are
    read as would fit into all that is free, and one more: the first that does not. Nothing is read while nothing fits
    and nothing borrowed can be wanted back.
    """
    waiting = waiting_in(group, now)
    claimants = [tenant for tenant in group.shares if could_claim(tenant, group)]
    if not waiting.filter(fits_somewhere(group) | Q(tenant_id__in=claimants)).exists():
        return []
    free = total_free(group)
    ranked = waiting.annotate(
        rank=Window(
            RowNumber(),
            partition_by=[F("is_urgent"), F("tenant_id"), F("created_by_id"), F("shape")],
            order_by=[F("priority").desc(), F("created_at"), F("pk")],
        )
    )
    few = Q()
    for name, left in zip(COUNTED, free, strict=True):
        ranked = ranked.annotate(
            **{f"before_{name}": ExpressionWrapper((F("rank") - 1) * F(name), output_field=BigIntegerField())}
        )
        few &= Q(**{f"before_{name}__lte": max(left, 0)})
    rows = ranked.filter(few | Q(rank__lte=MAX_CLAIMS, tenant_id__in=claimants)) if claimants else ranked.filter(few)
    return to_candidates(rows, group, now)


def waiting_in(group: Group, now: datetime) -> QuerySet[Run]:
    """PENDING runs of the group whose time has come, but for owners who may start nothing at all."""
    due = Q(not_before=None) | Q(not_before__lte=now)
    spent = [
        tenant
        for tenant, share in group.shares.items()
        if not share.may_borrow and not all(left > 0 for left in minus(share.nominal, group.used_by(tenant))[:2])
    ]
    barred = closed_owners(now)
    return (
        Run.objects.filter(due, state=RunState.PENDING, resource_group=group.name)
        .exclude(tenant_id__in=[*spent, *barred])
        .exclude(created_by_id__in=barred)
        .order_by()
    )


def closed_owners(now: datetime) -> list[UUID]:
    """Tenants and users at a cap, or outside the time for which their quota is valid."""
    full = Usage.objects.filter(
        scope__in=("tenant", "user"), resource__in=("running_runs", "cpu_milli", "memory_mib"), used__gte=F("cap")
    )
    shut = QuotaWindow.objects.filter(Q(valid_from__gt=now) | Q(valid_until__lte=now))
    return [*full.values_list("scope_id", flat=True), *shut.values_list("scope_id", flat=True)]


def could_claim(tenant: UUID, group: Group) -> bool:
    """Something of the tenant's nominal share is left, and others borrow or were asked to go."""
    left = minus(group.share_of(tenant).nominal, group.used_by(tenant))
    others = any(group.is_borrowing(other) for other in group.used if other != tenant)
    return left[0] > 0 and left[1] > 0 and (others or bool(group.leaving))


def fits_somewhere(group: Group) -> Q:
    """A condition that every run meets which could be placed now."""
    gaps = largest_gaps([node.free for node in group.nodes])
    one = Q(pk__in=[])
    for gap in gaps:
        one |= Q(cpu_milli__lte=gap[0], memory_mib__lte=gap[1], gpus__lte=gap[2])
    free = total_free(group)
    several = Q(num_containers__gt=1, cpu_milli__lte=free[0], memory_mib__lte=free[1], gpus__lte=free[2])
    return several | Q(num_containers=1) & one


def largest_gaps(gaps: Iterable[Amounts]) -> list[Amounts]:
    """Those that no other contains; one that contains all when there are very many."""
    distinct = {gap for gap in gaps if gap[0] > 0 and gap[1] > 0}
    best = [gap for gap in distinct if not any(gap != other and fits(gap, other) for other in distinct)]
    if len(best) > MAX_GAPS:
        return [(max(gap[0] for gap in best), max(gap[1] for gap in best), max(gap[2] for gap in best))]
    return best


def total_free(group: Group) -> Amounts:
    """Over all nodes of the group."""
    rooms = [node.free for node in group.nodes if node.free[0] > 0]
    free = total(rooms)
    return (min(free[0], UNLIMITED), min(free[1], UNLIMITED), min(free[2], UNLIMITED))


def to_candidates(rows: QuerySet[Run], group: Group, now: datetime) -> list[Candidate]:
    """Plain tuples from the covering index; only special specs are read."""
    columns = ("pk", "tenant_id", "created_by_id", "is_urgent", "priority", "created_at", "queued_at", "not_before")
    found = list(rows.values_list(*columns, *COUNTED, "shape"))
    special = specs_of([row[0] for row in found if row[-1].startswith(SPECIAL)])
    old = now - RESERVE_AFTER
    candidates = []
    for pk, tenant, user, urgent, priority, created_at, queued_at, not_before, *amounts, _shape in found:
        spec = special.get(pk)
        candidates.append(
            Candidate(
                pk,
                group.name,
                tenant,
                user,
                containers_of(spec) if spec else (tuple(amounts),),
                urgent,
                priority,
                created_at.timestamp(),
                max(queued_at, not_before or queued_at) <= old,
                frozenset(spec.node_names) if spec else frozenset(),
            )
        )
    return candidates


def candidate_of(run: Run) -> Candidate:
    """One waiting run, with all that its spec says."""
    spec = run.run_spec()
    return Candidate(
        run.pk,
        run.resource_group,
        run.tenant_id,
        run.created_by_id,
        containers_of(spec),
        run.is_urgent,
        run.priority,
        run.created_at.timestamp(),
        node_names=frozenset(spec.node_names),
    )


def specs_of(run_ids: Sequence[UUID]) -> dict[UUID, RunSpec]:
    """The specs of a few runs."""
    found: dict[UUID, RunSpec] = {}
    for start in range(0, len(run_ids), 500):
        rows: Any = Run.objects.filter(pk__in=run_ids[start : start + 500]).values_list("pk", "spec")
        found |= {pk: RunSpec.from_json(spec) for pk, spec in rows}
    return found


def read_allowances(candidates: Iterable[Candidate]) -> dict[UUID, Allowance]:
    """What the tenants and users of the candidates may still start; who is absent has no cap."""
    owners = {owner for candidate in candidates for owner in (candidate.tenant, candidate.user)}
    left: dict[UUID, dict[str, int]] = defaultdict(dict)
    rows = Usage.objects.filter(scope__in=("tenant", "user"), resource__in=OWNED)
    if len(owners) <= 500:
        rows = rows.filter(scope_id__in=owners)
    for scope_id, resource, cap, used in rows.values_list("scope_id", "resource", "cap", "used"):
        left[scope_id][resource] = cap - used
    return {
        owner: (
            amounts.get("running_runs", UNLIMITED),
            amounts.get("cpu_milli", UNLIMITED),
            amounts.get("memory_mib", UNLIMITED),
            amounts.get("gpus", UNLIMITED),
        )
        for owner, amounts in left.items()
    }


def read_candidates(world: World) -> list[Candidate]:
    """Over all groups, with the holders of those groups in which somebody could want borrowed room back."""
    now, found = timezone.now(), []
    for group in world.groups:
        mine = candidates_of(group, now)
        if mine and group.shares and any(could_claim(tenant, group) for tenant in group.shares):
            group.holders = read_holders(group, now)
        found += mine
    return found
