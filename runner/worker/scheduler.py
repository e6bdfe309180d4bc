"""A scheduler pass: read what could matter, plan, and carry the plan out in a few statements."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID, uuid4

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
from clavier.runs.world import read_allowances, read_candidates, read_world

logger = logging.getLogger(__name__)

LEASE = "scheduler"
LEASE_S = 10.0
#: Admissions of one transaction.
BATCH = 250
#: Runs that are read at once while many can start.
MOST = 512
#: A pass reads again at most so often; the next pass does the rest.
MAX_ROUNDS = 100


def schedule_pass() -> list[UUID]:
    """Admit all that fits, in the order of admission; the ids of the new attempts.

    Safe to call many times at once: one pass has the lease, the others leave it their wake-ups (the outbox rows).
    Each admission is conditional besides, and refused when the lease was lost meanwhile. On a disk that is nearly full
    nothing new starts; what runs goes on.
    """
    begun: list[UUID] = []
    if low_disks():
        return begun
    holder = str(uuid4())
    while True:
        fence = leases.hold(LEASE, holder, for_s=LEASE_S)
        if fence is None:
            return begun
        try:
            go_round(fence, holder, begun)
        except leases.LeaseLost as lost:
            logger.warning("a scheduler pass was too slow: %s", lost)
            return begun
        leases.give_up(LEASE, holder)
        if not Outbox.objects.exists():  # else somebody came while we still had the lease, and left
            return begun


def go_round(fence: Fence, holder: str, begun: list[UUID]) -> None:
    """Plan and carry out, again while runs are left unread, a booking was refused, or there are new wake-ups."""
    refused: set[UUID] = set()
    first = FIRST
    for number in range(MAX_ROUNDS):
        if number:
            leases.hold(LEASE, holder, for_s=LEASE_S)
        seen = list(Outbox.objects.values_list("pk", flat=True))
        world = read_world()
        selection = read_candidates(world, first=first)
        candidates = [one for one in selection.candidates if one.id not in refused]
        made = Plan()
        if candidates:
            made = plan(candidates, world.groups, read_allowances(candidates), until=selection.until)
        short = carry_out(made, fence, begun)
        if seen:
            Outbox.objects.filter(pk__in=seen).delete()
        refused |= short
        # The plan has taken what it gave from the world, so this asks for what is left.
        is_all = selection.until is None or (made.admissions and not read_candidates(world, first=1).candidates)
        if is_all and not short and not Outbox.objects.exists():
            break
        first = min(first * 4, MOST) if made.admissions else first * 8  # nothing can start: look at more


def carry_out(made: Plan, fence: Fence, begun: list[UUID]) -> set[UUID]:
    """Begin the admitted attempts, tell the queue, ask for room; the runs whose booking was refused."""
    refused: set[UUID] = set()
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
            begun.append(attempt.pk)
            queue.enqueue_launch(attempt.pk)
    for preemption in made.preemptions:
        with fence.transaction():
            ask_to_leave(run_id=preemption.run, claimant_id=preemption.claimant)
    return refused


def nodes_of(made: Plan) -> dict[UUID, Node]:
    """The nodes that the plan names."""
    ids = {node for admission in made.admissions for node in admission.nodes}
    return Node.objects.in_bulk(ids) if ids else {}


def begin_one_by_one(part: dict[UUID, list[Node]], fence: Fence, refused: set[UUID]) -> list[Attempt]:
    """Where something was short after all (a share of a GPU, a cap that was just lowered): whoever can still start."""
    begun = []
    for run_id, nodes in part.items():
        run = Run.objects.get(pk=run_id)
        for choice in [nodes, *other_choices(run, nodes)]:
            with fence.transaction():
                result = begin_attempt(run=run, nodes=choice) if run.state == RunState.PENDING else None
            if isinstance(result, Attempt):
                begun.append(result)
            if not isinstance(result, Shortage):
                break
            if result.scope != "node":
                refused.add(run_id)
                break
        else:
            refused.add(run_id)
    return begun


def other_choices(run: Run, tried: Sequence[Node]) -> list[list[Node]]:
    """The group's other nodes, one by one, for a run of one container."""
    if len(tried) > 1:
        return []
    nodes = Node.objects.filter(is_schedulable=True, resource_group__name=run.resource_group).exclude(pk=tried[0].pk)
    names = run.run_spec().node_names
    return [[node] for node in nodes.order_by("name") if not names or node.name in names]
