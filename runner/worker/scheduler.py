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
from clavier.runs.planner import Admission, Plan, plan
from clavier.runs.world import World, read_allowances, read_candidates, read_world

logger = logging.getLogger(__name__)

LEASE = "scheduler"
LEASE_S = 10.0
#: Admissions of one transaction.
BATCH = 250
#: New wake-ups and refused bookings are looked at again so often; the next pass does the rest.
MAX_ROUNDS = 10


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
            begun += rounds(fence, holder)
        except leases.LeaseLost as lost:
            logger.warning("a scheduler pass was too slow: %s", lost)
            return begun
        leases.give_up(LEASE, holder)
        if not Outbox.objects.exists():  # else somebody came while we still had the lease, and left
            return begun


def rounds(fence: Fence, holder: str) -> list[UUID]:
    """Plan and carry out, again while there are new wake-ups or a booking was refused."""
    begun: list[UUID] = []
    refused: set[UUID] = set()
    for _ in range(MAX_ROUNDS):
        seen = list(Outbox.objects.values_list("pk", flat=True))
        world = read_world()
        candidates = [one for one in read_candidates(world) if one.id not in refused]
        made = plan(candidates, world.groups, read_allowances(candidates)) if candidates else Plan()
        attempts, short = carry_out(made.admissions, world, fence, holder)
        begun += [attempt.pk for attempt in attempts]
        for preemption in made.preemptions:
            with fence.transaction():
                ask_to_leave(run_id=preemption.run, claimant_id=preemption.claimant)
        Outbox.objects.filter(pk__in=seen).delete()
        refused |= short
        if not short and not Outbox.objects.exists():
            break
    return begun


def carry_out(
    admissions: Sequence[Admission], world: World, fence: Fence, holder: str
) -> tuple[list[Attempt], set[UUID]]:
    """Begin the admitted attempts and tell the queue; those begun, and the runs whose booking was refused."""
    begun: list[Attempt] = []
    refused: set[UUID] = set()
    for start in range(0, len(admissions), BATCH):
        if start:
            leases.hold(LEASE, holder, for_s=LEASE_S)
        part = {
            admission.run: [world.nodes[node] for node in admission.nodes]
            for admission in admissions[start : start + BATCH]
        }
        with fence.transaction():
            attempts = begin_attempts(part)
        if attempts is None:
            attempts = begin_one_by_one(part, world, fence, refused)
        for attempt in attempts:
            queue.enqueue_launch(attempt.pk)
        begun += attempts
    return begun, refused


def begin_one_by_one(part: dict[UUID, list[Node]], world: World, fence: Fence, refused: set[UUID]) -> list[Attempt]:
    """Where something was short after all (a share of a GPU, a cap that was just lowered): whoever can still start."""
    begun = []
    for run_id, nodes in part.items():
        run = Run.objects.get(pk=run_id)
        for choice in [nodes, *other_choices(run, nodes, world)]:
            with fence.transaction():
                result = begin_attempt(run=run, nodes=choice) if run.state == "PENDING" else None
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


def other_choices(run: Run, tried: Sequence[Node], world: World) -> list[list[Node]]:
    """The group's other nodes, one by one, for a run of one container."""
    if len(tried) > 1:
        return []
    names = run.run_spec().node_names
    return [
        [node]
        for node in world.nodes.values()
        if node.resource_group.name == run.resource_group
        and node.pk != tried[0].pk
        and (not names or node.name in names)
    ]
