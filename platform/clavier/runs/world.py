"""What a scheduler pass reads: the groups as they are now, and whose runs could be stopped to make room."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from clavier.core import sql
from clavier.runs.demand import containers_of
from clavier.runs.models import Attempt, Run
from clavier.runs.outputs import has_sealed_since
from clavier.runs.placing import NOTHING, Amounts, NodeRoom, minus, plus
from clavier.runs.planner import UNLIMITED, Allowance, Candidate, Group, Holder, Share
from clavier.runs.selection import COUNTED, FIRST, HELD, Question, Selection, as_uuid, select
from clavier.runs.states import EndReason, RunState

#: A run that had to make room is left alone for so long.
COOL_OFF = timedelta(minutes=30)
NODES = """
    SELECT node.id, node.name, executor, engine_url, engine_network, pool.name, pool.id
    FROM quotas_node AS node JOIN quotas_resourcegroup AS pool ON pool.id = node.resource_group_id
    WHERE {chosen} ORDER BY node.name
"""
ALLOWED = "SELECT scope_id, resource, cap, used FROM quotas_usage WHERE scope IN ('tenant', 'user') {owners}"
SHUT = "SELECT scope_id FROM quotas_quotawindow WHERE valid_from > %s OR valid_until <= %s"
SHARES = (
    "SELECT tenant_id, may_borrow, cpu_milli, memory_mib, gpus FROM quotas_tenantshare WHERE resource_group_id = %s"
)

OWNED = ("running_runs", *COUNTED)


@dataclass(slots=True)
class World:
    """The active groups with their schedulable nodes. ``shut``: owners whose quota is not valid now."""

    groups: list[Group] = field(default_factory=list)
    now: datetime = field(default_factory=timezone.now)
    shut: list[UUID] = field(default_factory=list)


def read_world(group_name: str | None = None, *, is_open: bool = True) -> World:
    """All active groups, or one. ``is_open`` False: also nodes and groups that take no runs now."""
    world = World()
    by_group: dict[tuple[str, UUID], list[NodeRoom]] = defaultdict(list)
    rows = node_rows()
    chosen, parameters = [], []
    if is_open:
        chosen.append("node.is_schedulable AND pool.is_active")
    if group_name is not None:
        chosen.append("pool.name = %s")
        parameters.append(group_name)
    for pk, name, executor, url, network, group, group_id in sql.select(
        NODES.format(chosen=" AND ".join(chosen) or "TRUE"), *parameters
    ):
        # Nodes that one engine serves, or that engines share a network between, can hold ranks of one gang.
        reach = f"network {network}" if network else f"{executor} {url}"
        node_id = as_uuid(pk)
        by_group[group, as_uuid(group_id)].append(room_of(node_id, name, reach, rows.get(node_id, {})))
    for name, group_id in sorted(by_group):
        rooms, shares = by_group[name, group_id], nominal_shares(group_id)
        used, can_shrink = holdings(name)
        world.groups.append(Group(name, rooms, shares, used, id=group_id, can_shrink=can_shrink))
    read_leaving(world)
    world.shut = [as_uuid(scope_id) for (scope_id,) in sql.select(SHUT, *[world.now] * 2)]
    return world


def node_rows() -> dict[UUID, dict[str, tuple[int, int]]]:
    """Node -> resource -> (cap, used)."""
    found: dict[UUID, dict[str, tuple[int, int]]] = defaultdict(dict)
    for scope_id, resource, cap, used in sql.select(
        "SELECT scope_id, resource, cap, used FROM quotas_usage WHERE scope = 'node'"
    ):
        found[as_uuid(scope_id)][resource] = (cap, used)
    return found


def room_of(node_id: UUID, name: str, reach: str, rows: dict[str, tuple[int, int]]) -> NodeRoom:
    """The node for the planner; where it has no cap it takes everything."""
    caps = [rows.get(resource, (UNLIMITED, 0)) for resource in COUNTED]
    capacity: Amounts = (caps[0][0], caps[1][0], caps[2][0])
    free: Amounts = (caps[0][0] - caps[0][1], caps[1][0] - caps[1][1], caps[2][0] - caps[2][1])
    runs_cap, runs_used = rows.get("running_runs", (UNLIMITED, 0))
    return NodeRoom(node_id, name, free if runs_used < runs_cap else (-1, -1, -1), capacity, reach)


def holdings(group: str) -> tuple[dict[UUID, Amounts], bool]:
    """Tenant -> what its live runs hold of a group, and whether any of them may be asked to make room."""
    with connection.cursor() as cursor:
        cursor.execute(HELD, {"group": group})
        rows = cursor.fetchall()
    used = {as_uuid(tenant): (int(cpu), int(memory), int(gpus)) for tenant, cpu, memory, gpus, _ in rows}
    return used, any(preemptible for *_, preemptible in rows)


def nominal_shares(group_id: UUID) -> dict[UUID, Share]:
    """Tenant -> its nominal share of a group."""
    rows = sql.select(SHARES, group_id)
    return {as_uuid(tenant): Share((cpu, memory, gpus), bool(borrows)) for tenant, borrows, cpu, memory, gpus in rows}


def read_leaving(world: World) -> None:
    """What attempts that were asked to make room still hold."""
    if not sql.select("SELECT 1 FROM runs_attempt WHERE ended_at IS NULL AND leave_asked_at IS NOT NULL LIMIT 1"):
        return
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
        if attempt.run.preempted_at is None or not lost_all(attempt.run)
    ]


def lost_all(run: Run) -> bool:
    """When it made room last it sealed no checkpoint within its grace, so it would only lose its work once more."""
    last = Attempt.objects.filter(run=run, end_reason=EndReason.PREEMPTED).order_by("-number").first()
    return (
        last is not None and last.started_at is not None and not has_sealed_since(run.pk, last.started_at.timestamp())
    )


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
    few = tuple(owners) if len(owners) <= 500 else ()
    marks = f"AND scope_id IN ({', '.join(['%s'] * len(few))})" if few else ""
    for scope_id, resource, cap, used in sql.select(ALLOWED.format(owners=marks), *few):
        left[as_uuid(scope_id)][resource] = cap - used
    return {
        owner: (
            amounts.get("running_runs", UNLIMITED),
            amounts.get("cpu_milli", UNLIMITED),
            amounts.get("memory_mib", UNLIMITED),
            amounts.get("gpus", UNLIMITED),
        )
        for owner, amounts in left.items()
    }


def read_candidates(
    world: World, *, first: int = FIRST, each: int | None = None, refused: Collection[UUID] = ()
) -> Selection:
    """Over all groups, with the holders of those groups in which somebody could want borrowed room back.

    ``first``, ``each``, ``refused``: as ``select`` takes them. Asked again after a plan over what was read, it gives
    what that plan left.
    """
    found = Selection()
    for group in world.groups:
        if group.can_shrink and group.shares and not group.passed and could_claim(group):
            group.holders = read_holders(group, world.now)
        has_claims = bool(group.holders or group.leaving)
        question = Question(group, world.now, world.shut, refused)
        found.add(select(question, first=first, each=each, has_claims=has_claims))
    return found


def is_exhausted(world: World) -> bool:
    """No waiting run could be placed on what a plan left."""
    return not any(Question(group, world.now, world.shut).ask("{fits}", 1) for group in world.groups)
