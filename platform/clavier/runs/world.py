"""What a scheduler pass reads: the groups as they are now, and whose runs could be stopped to make room."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from clavier.quotas.models import Node, TenantShare, Usage
from clavier.runs.demand import containers_of
from clavier.runs.models import Attempt
from clavier.runs.placing import NOTHING, Amounts, NodeRoom, minus, plus
from clavier.runs.planner import UNLIMITED, Allowance, Candidate, Group, Holder, Share
from clavier.runs.selection import COUNTED, FIRST, HELD, Selection, as_uuid, select
from clavier.runs.states import RunState

#: A run that had to make room is left alone for so long.
COOL_OFF = timedelta(minutes=30)
#: Answered from the partial index on what runs hold.
ANY_PREEMPTIBLE = """
    SELECT 1 FROM runs_run
    WHERE state IN ('PREPARING', 'RUNNING', 'STOPPING') AND resource_group = %(group)s AND preemptible LIMIT 1
"""

OWNED = ("running_runs", *COUNTED)


@dataclass(slots=True)
class World:
    """The active groups with their schedulable nodes."""

    groups: list[Group] = field(default_factory=list)


def read_world(group_name: str | None = None, *, is_open: bool = True) -> World:
    """All active groups, or one. ``is_open`` False: also nodes and groups that take no runs now."""
    world = World()
    nodes = Node.objects.order_by("name")
    if is_open:
        nodes = nodes.filter(is_schedulable=True, resource_group__is_active=True)
    if group_name is not None:
        nodes = nodes.filter(resource_group__name=group_name)
    by_group: dict[tuple[str, UUID], list[NodeRoom]] = defaultdict(list)
    rows = node_rows()
    columns = ("pk", "name", "executor", "engine_url", "engine_network", "resource_group__name", "resource_group_id")
    for pk, name, executor, url, network, group, group_id in nodes.values_list(*columns):
        # Nodes that one engine serves, or that engines share a network between, can hold ranks of one gang.
        reach = f"network {network}" if network else f"{executor} {url}"
        by_group[group, group_id].append(room_of(pk, name, reach, rows.get(pk, {})))
    names = [name for name, _ in by_group]
    used, shares = used_by_tenant(names), nominal_shares(names)
    for name, group_id in sorted(by_group):
        rooms = by_group[name, group_id]
        world.groups.append(Group(name, rooms, shares.get(name, {}), used.get(name, {}), id=group_id))
    read_leaving(world)
    return world


def node_rows() -> dict[UUID, dict[str, tuple[int, int]]]:
    """Node -> resource -> (cap, used)."""
    found: dict[UUID, dict[str, tuple[int, int]]] = defaultdict(dict)
    rows = Usage.objects.filter(scope="node", resource__in=OWNED).values_list("scope_id", "resource", "cap", "used")
    for scope_id, resource, cap, used in rows:
        found[scope_id][resource] = (cap, used)
    return found


def room_of(node_id: UUID, name: str, reach: str, rows: dict[str, tuple[int, int]]) -> NodeRoom:
    """The node for the planner; where it has no cap it takes everything."""
    caps = [rows.get(resource, (UNLIMITED, 0)) for resource in COUNTED]
    capacity: Amounts = (caps[0][0], caps[1][0], caps[2][0])
    free: Amounts = (caps[0][0] - caps[0][1], caps[1][0] - caps[1][1], caps[2][0] - caps[2][1])
    runs_cap, runs_used = rows.get("running_runs", (UNLIMITED, 0))
    return NodeRoom(node_id, name, free if runs_used < runs_cap else (-1, -1, -1), capacity, reach)


def used_by_tenant(groups: Iterable[str]) -> dict[str, dict[UUID, Amounts]]:
    """Group -> tenant -> what its live runs hold."""
    found: dict[str, dict[UUID, Amounts]] = defaultdict(dict)
    with connection.cursor() as cursor:
        for group in groups:
            cursor.execute(HELD, {"group": group})
            for tenant, cpu_milli, memory_mib, gpus in cursor.fetchall():
                found[group][as_uuid(tenant)] = (int(cpu_milli), int(memory_mib), int(gpus))
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
    with connection.cursor() as cursor:
        cursor.execute(ANY_PREEMPTIBLE, {"group": group.name})
        if cursor.fetchone() is None:
            return []
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


def could_claim(group: Group) -> bool:
    """Somebody has some of its nominal share left, and others borrow or were asked to go."""
    borrowers = {tenant for tenant in group.used if group.is_borrowing(tenant)}
    if not borrowers and not group.leaving:
        return False
    for tenant, share in group.shares.items():
        left = minus(share.nominal, group.used_by(tenant))
        if left[0] > 0 and left[1] > 0 and (group.leaving or borrowers - {tenant}):
            return True
    return False


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


def read_candidates(world: World, *, first: int = FIRST) -> Selection:
    """Over all groups, with the holders of those groups in which somebody could want borrowed room back."""
    now, found = timezone.now(), Selection()
    for group in world.groups:
        if group.shares and could_claim(group):
            group.holders = read_holders(group, now)
        has_claims = bool(group.holders or group.leaving)
        mine = select(group, now, first=first, has_claims=has_claims)
        found.candidates += mine.candidates
        found.until = min((one for one in (found.until, mine.until) if one is not None), default=None)
    return found
