"""Which waiting runs start, where, and what has to make room: a pure function of candidates and capacities.

The order of admission, by which every choice here is made (docs/scheduling.md):

1. urgent runs;
2. runs that stay within their tenant's nominal share of the group, then those that borrow;
3. among borrowers the tenant with the lowest dominant share (the largest part of any resource that it holds);
4. higher priority, then age, then id.

A run that does not fit is passed over, with two exceptions in which it *holds* nodes that nobody behind it may take:
it may reserve and is the first of its group that does not fit, or room is being made for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from clavier.runs.placing import NOTHING, Amounts, NodeRoom, fits, minus, missing, place, plus, total, weight

#: Runs of one group for which room is being made at the same time.
MAX_CLAIMS = 8
UNLIMITED = 2**60

Order = tuple[bool, bool, float, int, float, UUID]
#: Of the heap: an order, 0 or the number of the end (so that none are equal), the candidate, and the end.
Entry = tuple[Order, int, "Candidate", "End | None"]
#: Runs, cpu_milli, memory_mib and gpus that a tenant or user may still start.
Allowance = tuple[int, int, int, int]
ALLOWED_ALL: Allowance = (UNLIMITED,) * 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting run. ``containers``: what each rank needs. ``since``: when it was submitted (seconds).

    ``may_reserve``: it has waited long enough to hold nodes. ``node_names`` empty: any node of the group.
    ``shape``: equal for runs that fit where the other fits.
    """

    id: UUID
    group: str
    tenant: UUID
    user: UUID
    containers: tuple[Amounts, ...]
    is_urgent: bool = False
    priority: int = 0
    since: float = 0.0
    may_reserve: bool = False
    node_names: frozenset[str] = frozenset()
    shape: str = ""
    total: Amounts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", total(self.containers))


@dataclass(frozen=True, slots=True)
class End:
    """Behind this candidate there may be others that nobody has read: later in the order than it was when it was read.

    ``least``: they are of its tenant, and none wants less than that of anything. So they move back with it as the
    tenant gets more. ``is_of_head``: none of them fits; they matter only while the head of the line is not known.
    """

    candidate: Candidate
    least: Amounts | None = None
    is_of_head: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """A running run that may be stopped when what its tenant borrowed is wanted back.

    ``places``: node and amounts of each rank. ``started``: seconds; the newest loses least.
    """

    id: UUID
    tenant: UUID
    places: tuple[tuple[UUID, Amounts], ...]
    is_urgent: bool = False
    priority: int = 0
    started: float = 0.0

    @property
    def total(self) -> Amounts:
        """Over all ranks."""
        return total(amounts for _, amounts in self.places)


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's nominal part of a group."""

    nominal: Amounts
    may_borrow: bool = True


NO_SHARE = Share(NOTHING)


@dataclass(slots=True)
class Group:
    """A resource group now. ``used``: what each tenant's live runs hold; ``leaving``: which part of that will go.

    ``can_shrink``: some of what runs may be asked to leave. ``hopeless``: shapes that do not fit any more. ``passed``:
    candidates that were looked at and do not start.
    """

    name: str
    nodes: list[NodeRoom]
    shares: dict[UUID, Share] = field(default_factory=dict)
    used: dict[UUID, Amounts] = field(default_factory=dict)
    leaving: dict[UUID, Amounts] = field(default_factory=dict)
    holders: list[Holder] = field(default_factory=list)
    id: UUID | None = None
    can_shrink: bool = False
    claims: int = 0
    has_head: bool = False
    hopeless: set[str] = field(default_factory=set)
    passed: set[UUID] = field(default_factory=set)
    capacity: Amounts = field(init=False)
    dominant: dict[UUID, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.capacity = total(node.capacity for node in self.nodes)

    def share_of(self, tenant: UUID) -> Share:
        """The tenant's share; without one it has nothing nominal and may borrow."""
        return self.shares.get(tenant, NO_SHARE)

    def used_by(self, tenant: UUID) -> Amounts:
        """What the tenant holds."""
        return self.used.get(tenant, NOTHING)

    def dominant_share(self, tenant: UUID) -> float:
        """The largest part of any one resource that the tenant holds, 0 to 1."""
        found = self.dominant.get(tenant)
        if found is None:
            parts = zip(self.used_by(tenant), self.capacity, strict=True)
            found = self.dominant[tenant] = max(part / whole if whole else 0.0 for part, whole in parts)
        return found

    def give(self, tenant: UUID, amounts: Amounts) -> None:
        """The tenant holds so much more."""
        self.used[tenant] = plus(self.used_by(tenant), amounts)
        self.dominant.pop(tenant, None)

    def is_borrowing(self, tenant: UUID, going: Amounts = NOTHING) -> bool:
        """Once all that leaves and ``going`` are gone, the tenant still has more of something than is nominally its."""
        staying = minus(minus(self.used_by(tenant), self.leaving.get(tenant, NOTHING)), going)
        return not fits(staying, self.share_of(tenant).nominal)


@dataclass(frozen=True, slots=True)
class Admission:
    """A run starts, rank by rank on these nodes."""

    run: UUID
    nodes: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running run is stopped to make room for a waiting one, and waits again."""

    run: UUID
    claimant: UUID


@dataclass(slots=True)
class Plan:
    """What a pass does. ``held``: node -> the waiting run for which it is kept free."""

    admissions: list[Admission] = field(default_factory=list)
    preemptions: list[Preemption] = field(default_factory=list)
    held: dict[UUID, UUID] = field(default_factory=dict)


def plan(
    candidates: Iterable[Candidate],
    groups: Iterable[Group],
    allowances: dict[UUID, Allowance],
    *,
    ends: Iterable[End] = (),
    made: Plan | None = None,
) -> Plan:
    """Admit greedily in the order of admission, which is worked out again after each admission.

    ``allowances``: of tenants and users by id; who is absent may have all. ``ends``: what was not read begins there; it
    stops where such a run could be next. The groups and allowances are used up. ``made``: go on with this plan, which
    admitted nobody so far, with the same groups and other candidates.
    """
    made, by_name = made or Plan(), {group.name: group for group in groups}
    hopeless: set[tuple[object, ...]] = set()
    waiting = in_order(candidates, ends, by_name)
    while waiting:
        before, number, candidate, end = heapq.heappop(waiting)
        group = by_name[candidate.group]
        now = order_of(candidate, group) if end is None else order_of_end(end, group, before)
        if now != before:  # its tenant got something meanwhile; an order only ever becomes later
            heapq.heappush(waiting, (now, number, candidate, end))
            continue
        if end is not None:
            if end.is_of_head and group.has_head:
                continue
            break
        shape = (candidate.group, candidate.containers, candidate.node_names)
        if shape in hopeless and not could_make_room(candidate, group):
            continue
        if candidate.id in group.passed or not is_allowed(candidate, group, allowances):
            continue
        nodes = None if shape in hopeless else place(candidate.containers, open_nodes(group, candidate))
        if nodes is not None:
            admit(candidate, group, nodes, allowances)
            made.admissions.append(Admission(candidate.id, tuple(node.id for node in nodes)))
            continue
        hopeless.add(shape)
        if candidate.shape:
            group.hopeless.add(candidate.shape)
        group.passed.add(candidate.id)
        make_room(candidate, group, made)
    return made


def in_order(candidates: Iterable[Candidate], ends: Iterable[End], groups: dict[str, Group]) -> list[Entry]:
    """A heap of the candidates, with the ends right behind theirs."""
    waiting: list[Entry] = [
        (order_of(candidate, groups[candidate.group]), 0, candidate, None)
        for candidate in candidates
        if candidate.group in groups
    ]
    waiting += [
        (order_of(end.candidate, groups[end.candidate.group]), number, end.candidate, end)
        for number, end in enumerate(ends, 1)
    ]
    heapq.heapify(waiting)
    return waiting


def order_of_end(end: End, group: Group, before: Order) -> Order:
    """The first place that somebody behind the end could have now; ``before``: when that was last asked."""
    tenant = end.candidate.tenant
    share = group.shares.get(tenant)
    if end.least is None:
        return before
    if not before[1] and share is not None and fits(plus(group.used_by(tenant), end.least), share.nominal):
        return before  # somebody smaller may still be within the share when this one no longer is
    return order_of(end.candidate, group)


def order_of(candidate: Candidate, group: Group) -> Order:
    """The place of a candidate in the order of admission; lower comes first."""
    within = is_nominal(candidate, group)
    share = 0.0 if within else group.dominant_share(candidate.tenant)
    return (not candidate.is_urgent, not within, share, -candidate.priority, candidate.since, candidate.id)


def is_nominal(candidate: Candidate, group: Group) -> bool:
    """With this run the tenant would hold no more of the group than its nominal share."""
    share = group.shares.get(candidate.tenant)
    return share is not None and fits(plus(group.used_by(candidate.tenant), candidate.total), share.nominal)


def is_allowed(candidate: Candidate, group: Group, allowances: dict[UUID, Allowance]) -> bool:
    """The caps of its tenant and user and the tenant's share let it start, were there room."""
    if not group.share_of(candidate.tenant).may_borrow and not is_nominal(candidate, group):
        return False
    return all(
        left[0] >= 1 and fits(candidate.total, left[1:])
        for left in (allowances.get(owner, ALLOWED_ALL) for owner in (candidate.tenant, candidate.user))
    )


def open_nodes(group: Group, candidate: Candidate) -> list[NodeRoom]:
    """The nodes that the candidate may be sent to."""
    names = candidate.node_names
    return [node for node in group.nodes if not node.is_held and (not names or node.name in names)]


def admit(candidate: Candidate, group: Group, nodes: Sequence[NodeRoom], allowances: dict[UUID, Allowance]) -> None:
    """Take what the candidate needs from nodes, share and allowances."""
    for node, amounts in zip(nodes, candidate.containers, strict=True):
        node.take(amounts)
    group.give(candidate.tenant, candidate.total)
    for owner in (candidate.tenant, candidate.user):
        if owner in allowances:
            runs, *rest = allowances[owner]
            allowances[owner] = (runs - 1, *minus((rest[0], rest[1], rest[2]), candidate.total))


def could_make_room(candidate: Candidate, group: Group) -> bool:
    """Somebody's leaving could be waited for or asked for, or nodes be held."""
    may_claim = group.claims < MAX_CLAIMS and bool(group.holders or group.leaving)
    return may_claim or (candidate.may_reserve and not group.has_head)


def make_room(candidate: Candidate, group: Group, made: Plan) -> None:
    """The candidate does not fit: ask for borrowed room, or keep nodes free for it, or let the others pass."""
    if not could_make_room(candidate, group):
        return
    nodes = open_nodes(group, candidate)
    if is_nominal(candidate, group) and group.claims < MAX_CLAIMS:
        victims = find_victims(candidate, group)
        if victims is not None:
            group.claims += 1
            made.preemptions += [Preemption(victim.id, candidate.id) for victim in victims]
            for victim in victims:
                leave(victim, group)
            hold(candidate, [(node, node.coming) for node in nodes], made)
            return
    if candidate.may_reserve and not group.has_head:
        group.has_head = hold(candidate, [(node, node.capacity) for node in nodes], made)


def find_victims(candidate: Candidate, group: Group) -> list[Holder] | None:
    """Running runs whose end lets the candidate start; [] when those that leave already do, None when no choice does.

    One run if one is enough, else a greedy choice without any that is not needed. A tenant loses runs only while it
    holds more than its nominal share.
    """
    nodes = {node.id: node.with_free(node.coming) for node in open_nodes(group, candidate)}

    def has_room(victims: Sequence[Holder]) -> bool:
        room = {node.id: node.with_free(node.free) for node in nodes.values()}
        for node_id, amounts in (part for victim in victims for part in victim.places):
            if node_id in room:
                room[node_id].free = plus(room[node_id].free, amounts)
        return place(candidate.containers, room.values()) is not None

    if any(node.leaving != NOTHING for node in group.nodes) and has_room([]):
        return []
    eligible = [
        holder
        for holder in sorted(group.holders, key=lambda one: (one.is_urgent, one.priority, -one.started, one.id))
        if holder.tenant != candidate.tenant
        and group.is_borrowing(holder.tenant)
        and any(node_id in nodes for node_id, _ in holder.places)
    ]
    for holder in eligible:
        if has_room([holder]):
            return [holder]
    chosen = deepest_choice(eligible, group)
    if len(chosen) < 2 or not has_room(chosen):
        return None
    for holder in list(chosen):
        without = [one for one in chosen if one is not holder]
        if has_room(without):
            chosen = without
    return chosen


def deepest_choice(eligible: Sequence[Holder], group: Group) -> list[Holder]:
    """As many as may be stopped before each tenant is back at its nominal share."""
    chosen: list[Holder] = []
    going: dict[UUID, Amounts] = {}
    for holder in eligible:
        gone = going.get(holder.tenant, NOTHING)
        if group.is_borrowing(holder.tenant, gone):
            chosen.append(holder)
            going[holder.tenant] = plus(gone, holder.total)
    return chosen


def leave(victim: Holder, group: Group) -> None:
    """A victim will give back what it holds."""
    group.holders.remove(victim)
    group.leaving[victim.tenant] = plus(group.leaving.get(victim.tenant, NOTHING), victim.total)
    by_id = {node.id: node for node in group.nodes}
    for node_id, amounts in victim.places:
        if node_id in by_id:
            by_id[node_id].leaving = plus(by_id[node_id].leaving, amounts)


def hold(candidate: Candidate, rooms: Sequence[tuple[NodeRoom, Amounts]], made: Plan) -> bool:
    """Keep for the candidate the nodes on which it will start soonest; False when even so much room is not enough."""
    largest = max(candidate.containers, key=weight)
    nearest = sorted(rooms, key=lambda one: (missing(largest, one[0].free, one[0].capacity), one[0].name))
    found = place(candidate.containers, [node.with_free(free) for node, free in nearest], keep_order=True)
    if found is None:
        return False
    kept = {node.id for node in found}
    for node, _ in rooms:
        if node.id in kept:
            node.is_held = True
            made.held[node.id] = candidate.id
    return True
