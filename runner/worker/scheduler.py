"""A scheduler pass: read what could matter, plan, and carry the plan out in a few statements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from django.db import transaction

from clavier.core.disk import low_disks
from clavier.quotas.models import Node
from clavier.quotas.services import Shortage
from clavier.runs import leases, queue
from clavier.runs.admission import ask_to_leave, begin_attempt, begin_attempts
from clavier.runs.leases import Fence
from clavier.runs.models import Attempt, Outbox, Run
from clavier.runs.planner import Plan, plan
from clavier.runs.selection import FIRST
from clavier.runs.states import RunState
from clavier.runs.world import World, is_exhausted, read_allowances, read_candidates, read_world

logger = logging.getLogger(__name__)

LEASE = "scheduler"
LEASE_S = 10.0
#: Admissions of one transaction.
BATCH = 500
#: Runs that are read at once while more than so few can start, and how many of one tenant.
FEW, MOST, EACH = 16, 4096, 16
#: Wake-ups that one statement removes.
WAKE_UPS = 5000
#: A pass reads again at most so often; the next pass does the rest.
MAX_ROUNDS = 100


@dataclass(slots=True)
class Refused:
    """Runs of a pass whose booking was refused, and shapes that no node takes."""

    runs: set[UUID] = field(default_factory=set)
    shapes: set[str] = field(default_factory=set)


def schedule_pass(tell: Callable[[UUID], object] | None = None) -> list[UUID]:
    """Admit all that fits, in the order of admission; the ids of the new attempts.

    ``tell`` gets each of them once it stands in the database, and must not wait; without it the queue is told.

    Safe to call many times at once: one pass has the lease, the others leave it their wake-ups (the outbox rows).
    Each admission is conditional besides, and refused when the lease was lost meanwhile. On a disk that is nearly full
    nothing new starts; what runs goes on.
    """
    begun: list[UUID] = []
    if low_disks():
        return begun

    def note(attempt_id: UUID) -> None:
        begun.append(attempt_id)
        (tell or queue.enqueue_launch)(attempt_id)

    holder = str(uuid4())
    while True:
        fence = leases.hold(LEASE, holder, for_s=LEASE_S)
        if fence is None:
            return begun
        try:
            seen = go_round(fence, holder, note)
        except leases.LeaseLost as lost:
            logger.warning("a scheduler pass was too slow: %s", lost)
            return begun
        with transaction.atomic():
            for start in range(0, len(seen), WAKE_UPS):
                Outbox.objects.filter(pk__in=seen[start : start + WAKE_UPS]).delete()
            leases.give_up(LEASE, holder)
        if not Outbox.objects.exists():  # else somebody came while we still had the lease, and left
            return begun


def go_round(fence: Fence, holder: str, note: Callable[[UUID], None]) -> list[int]:
    """Plan and carry out, again while runs are left unread or a booking was refused; the wake-ups that it has answered.

    ``note`` is called with each attempt that begins.
    """
    seen: set[int] = set()
    refused = Refused()
    first, each = FIRST, None
    for number in range(MAX_ROUNDS):
        if number:
            leases.hold(LEASE, holder, for_s=LEASE_S)
        seen.update(Outbox.objects.values_list("pk", flat=True))
        world = read_world()
        for group in world.groups:
            group.hopeless |= refused.shapes
        made, is_all = plan_round(world, first, each, refused.runs)
        is_refused = carry_out(made, fence, note, refused)
        # The plan has taken what it gave from the world, so this asks for what is left.
        if not is_refused and (is_all or not made.admissions or is_exhausted(world)):
            break
        first, each = (MOST, EACH) if len(made.admissions) > FEW else (FIRST, None)
    return list(seen)


def plan_round(world: World, first: int, each: int | None, refused: Collection[UUID]) -> tuple[Plan, bool]:
    """A plan that admits somebody if anybody can start; whether it is over all that waits."""
    made = Plan()
    for _ in range(MAX_ROUNDS):
        selection = read_candidates(world, first=first, each=each, refused=refused)
        if selection.candidates:
            allowances = read_allowances(selection.candidates)
            plan(selection.candidates, world.groups, allowances, ends=selection.ends, made=made)
        if made.admissions or not selection.ends:
            return made, not selection.ends
    return made, False


def carry_out(made: Plan, fence: Fence, note: Callable[[UUID], None], refused: Refused) -> bool:
    """Begin the admitted attempts, note them, ask for room; whether a booking was refused."""
    before = len(refused.runs)
    nodes = nodes_of(made)
    for start in range(0, len(made.admissions), BATCH):
        part = {
            admission.run: [nodes[node] for node in admission.nodes]
            for admission in made.admissions[start : start + BATCH]
        }
        with fence.transaction():
            attempts = begin_attempts(part)
        if attempts is None:
            attempts = begin_one_by_one(part, fence, refused)
        for attempt in attempts:
            note(attempt.pk)
    for preemption in made.preemptions:
        with fence.transaction():
            ask_to_leave(run_id=preemption.run, claimant_id=preemption.claimant)
    return len(refused.runs) > before


def nodes_of(made: Plan) -> dict[UUID, Node]:
    """The nodes that the plan names."""
    ids = {node for admission in made.admissions for node in admission.nodes}
    return Node.objects.in_bulk(ids) if ids else {}


def begin_one_by_one(part: dict[UUID, list[Node]], fence: Fence, refused: Refused) -> list[Attempt]:
    """Where something was short after all (a share of a GPU, a cap that was just lowered): whoever can still start.

    Where no node takes a run, no other of its shape is tried in this pass.
    """
    begun = []
    for run_id, nodes in part.items():
        run = Run.objects.get(pk=run_id)
        if run.shape in refused.shapes:
            continue
        for choice in [nodes, *other_choices(run, nodes)]:
            with fence.transaction():
                result = begin_attempt(run=run, nodes=choice) if run.state == RunState.PENDING else None
            if isinstance(result, Attempt):
                begun.append(result)
            if not isinstance(result, Shortage):
                break
            if result.scope != "node":
                refused.runs.add(run_id)
                break
        else:
            refused.runs.add(run_id)
            if run.shape and len(nodes) == 1:
                refused.shapes.add(run.shape)
    return begun


def other_choices(run: Run, tried: Sequence[Node]) -> list[list[Node]]:
    """The group's other nodes, one by one, for a run of one container."""
    if len(tried) > 1:
        return []
    nodes = Node.objects.filter(is_schedulable=True, resource_group__name=run.resource_group).exclude(pk=tried[0].pk)
    names = run.run_spec().node_names
    return [[node] for node in nodes.order_by("name") if not names or node.name in names]
