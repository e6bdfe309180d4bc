"""Why a run waits, where it stands, and what would let it start: worked out from what is now when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from django.utils import timezone

from clavier.core.disk import low_disks
from clavier.quotas.models import QuotaWindow, Usage
from clavier.runs.models import Attempt, Run
from clavier.runs.placing import NOTHING, Amounts, NodeRoom, place, plus, total, weight
from clavier.runs.planner import Candidate, Group, is_nominal
from clavier.runs.queries import position
from clavier.runs.selection import COUNTED, candidate_of
from clavier.runs.states import RunState
from clavier.runs.waiting_gpus import gpu_obstacles
from clavier.runs.wording import left_of, listed, number_of, say
from clavier.runs.world import OWNED, places_of, read_world

Obstacle = Literal[
    "", "not_before", "disk", "window", "tenant_cap", "user_cap", "no_nodes", "share", "room", "next_pass"
]
OBSTACLES: tuple[str, ...] = tuple(word for word in get_args(Obstacle) if word)
MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """``obstacle``: a stable word for what is in the way. ``why`` and ``starts_when`` are sentences for people.

    ``position``: 1 is next in its resource group. All are empty for a run that does not wait.
    """

    obstacle: Obstacle = ""
    why: str = ""
    starts_when: str = ""
    position: int | None = None


def explain(run: Run | None) -> Waiting:
    """For one run, in the language of the request."""
    if run is None or run.state != RunState.PENDING:
        return Waiting()
    obstacle, why, starts_when = next(obstacles(run))
    return Waiting(obstacle, why, starts_when, position(run))


def obstacles(run: Run) -> Iterator[tuple[Obstacle, str, str]]:
    """What is in the way, the first that has to be removed first."""
    now = timezone.now()
    if run.not_before is not None and run.not_before > now:
        yield "not_before", say("not_before", time=as_text(run.not_before)), say("by_itself")
    if low_disks():
        yield "disk", say("disk_low"), say("disk_freed")
    yield from windows(run, now)
    yield from caps(run)
    groups = read_world(run.resource_group).groups
    if not groups:
        yield "no_nodes", say("no_nodes", group=run.resource_group), say("operator_opens")
    else:
        yield from room(run, candidate_of(run), groups[0])
        yield from gpu_obstacles(run)
    yield "next_pass", say("next_pass"), say("by_itself")


def windows(run: Run, now: datetime) -> Iterator[tuple[Obstacle, str, str]]:
    """The quota of the tenant or user is not valid now."""
    for window in QuotaWindow.objects.filter(scope_id__in=(run.tenant_id, run.created_by_id)):
        whose = say(f"quota_of_{window.scope}")
        if window.valid_from is not None and now < window.valid_from:
            yield "window", say("window_opens", whose=whose, time=as_text(window.valid_from)), say("by_itself")
        elif window.valid_until is not None and now >= window.valid_until:
            yield "window", say("window_closed", whose=whose, time=as_text(window.valid_until)), say("new_quota")


def caps(run: Run) -> Iterator[tuple[Obstacle, str, str]]:
    """A cap of the tenant or the user is in the way."""
    wanted = dict(zip(OWNED, (1, run.cpu_milli, run.memory_mib, run.gpus), strict=True))
    owners: tuple[tuple[str, UUID, Obstacle], ...] = (
        ("tenant", run.tenant_id, "tenant_cap"),
        ("user", run.created_by_id, "user_cap"),
    )
    for scope, scope_id, word in owners:
        for row in Usage.objects.filter(scope=scope, scope_id=scope_id, resource__in=OWNED).order_by("pk"):
            if row.used + wanted[row.resource] <= row.cap:
                continue
            why = left_of(row.resource, row.cap - row.used, row.cap, wanted[row.resource], say(f"left_for_{scope}"))
            if wanted[row.resource] > row.cap:
                yield word, why, say("more_quota")
                continue
            lacking = row.used + wanted[row.resource] - row.cap
            owner = {"tenant_id" if scope == "tenant" else "created_by_id": scope_id}
            ends = holders_of(run, row.resource, lacking, **owner)
            yield word, why, when_ends(ends, say("when_freed", amount=number_of(row.resource, lacking)))


def room(run: Run, candidate: Candidate, group: Group) -> Iterator[tuple[Obstacle, str, str]]:
    """The tenant's share or the nodes' room is in the way."""
    share = group.share_of(candidate.tenant)
    if not share.may_borrow and not is_nominal(candidate, group):
        used = group.used_by(candidate.tenant)
        at = next(at for at in range(3) if used[at] + candidate.total[at] > share.nominal[at])
        lacking = used[at] + candidate.total[at] - share.nominal[at]
        why = (
            say("share", group=group.name)
            + " "
            + left_of(
                COUNTED[at], share.nominal[at] - used[at], share.nominal[at], candidate.total[at], say("left_in_share")
            )
        )
        ends = holders_of(run, COUNTED[at], lacking, tenant_id=run.tenant_id, resource_group=run.resource_group)
        yield "share", why, when_ends(ends, say("when_freed", amount=number_of(COUNTED[at], lacking)))
    nodes = [node for node in group.nodes if not candidate.node_names or node.name in candidate.node_names]
    if not nodes:
        yield "no_nodes", say("no_named_nodes", nodes=listed(sorted(candidate.node_names))), say("operator_opens")
    elif place(candidate.containers, nodes) is None:
        yield "room", no_room(candidate, group, nodes), when_ends(freeing(run, candidate, nodes), say("when_several"))


def no_room(candidate: Candidate, group: Group, nodes: list[NodeRoom]) -> str:
    """The resource of which the group has too little; or the nearest node, when it is only spread too widely."""
    free = total(node.free for node in nodes if min(node.free) >= 0)
    capacity = total(node.capacity for node in nodes)
    for at in (2, 0, 1):
        if candidate.total[at] > free[at]:
            return left_of(
                COUNTED[at], free[at], capacity[at], candidate.total[at], say("left_in_group", group=group.name)
            )
    largest = max(candidate.containers, key=weight)
    nearest = min(nodes, key=lambda node: (-min(node.free[at] - largest[at] for at in range(3)), node.name))
    parts = listed([number_of(COUNTED[at], max(0, nearest.free[at])) for at in range(3) if largest[at]])
    wanted = listed([number_of(COUNTED[at], largest[at]) for at in range(3) if largest[at]])
    if len(candidate.containers) > 1:
        return say("no_room_for_gang", group=group.name, count=len(candidate.containers), wanted=wanted)
    return say("spread", group=group.name, node=nearest.name, parts=parts, wanted=wanted)


def holders_of(run: Run, resource: str, lacking: int, **owner: object) -> list[str]:
    """The owner's live runs whose end alone would be enough, the oldest first, as the run's tenant may see them."""
    live = Run.objects.filter(attempts__ended_at=None, attempts__isnull=False, **owner).order_by("started_at", "pk")
    if resource != "running_runs":
        live = live.filter(**{f"{resource}__gte": lacking})
    return [named(one, run) for one in live[:MAX_NAMED]]


def freeing(run: Run, candidate: Candidate, nodes: list[NodeRoom]) -> list[str]:
    """The group's live runs, the oldest first, whose end alone would let the candidate start."""
    live = Attempt.objects.filter(ended_at=None, run__resource_group=run.resource_group).select_related("run")
    found: list[str] = []
    for attempt in live.prefetch_related("peers").order_by("created_at", "run__created_at", "pk")[:500]:
        freed: dict[UUID, Amounts] = {}
        for node_id, amounts in places_of(attempt):
            freed[node_id] = plus(freed.get(node_id, NOTHING), amounts)
        rooms = [node.with_free(plus(node.free, freed.get(node.id, NOTHING))) for node in nodes]
        if place(candidate.containers, rooms) is not None:
            found.append(named(attempt.run, run))
        if len(found) == MAX_NAMED:
            break
    return found


def named(other: Run, run: Run) -> str:
    """A run by its name, unless it belongs to another tenant."""
    return say("run_named", name=other.name) if other.tenant_id == run.tenant_id else say("run_of_other")


def when_ends(names: list[str], otherwise: str) -> str:
    """ "It starts when run X or another tenant's run ends"."""
    distinct = list(dict.fromkeys(names))
    return say("when_ends", runs=listed(distinct, last="or")) if distinct else otherwise


def as_text(moment: datetime) -> str:
    """In the platform's time zone, to the second."""
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}"
