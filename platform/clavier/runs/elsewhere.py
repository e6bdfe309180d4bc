"""Another place for a run whose engine could not start it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from django.db import transaction

from clavier.quotas.models import Node
from clavier.quotas.services import Placement, Shortage, release, reserve
from clavier.runs.demand import containers_of
from clavier.runs.models import Attempt, Run
from clavier.runs.placing import place
from clavier.runs.world import read_world
from runner.contract.run_spec import RunSpec


def nodes_of(attempt: Attempt) -> list[Node]:
    """Where an attempt's containers are, by rank."""
    return [attempt.node, *(peer.node for peer in attempt.peers.select_related("node"))]


def placements_of(spec: RunSpec, nodes: Sequence[Node]) -> list[Placement]:
    """Each rank on its node."""
    containers = spec.containers()
    return [
        Placement(rank, node, role.resources) for rank, (role, node) in enumerate(zip(containers, nodes, strict=True))
    ]


def move_elsewhere(*, run: Run, ended: Attempt, to_attempt: UUID) -> list[Node] | None:
    """Give back what an attempt held, and book for the next one on engines that have not failed to start this run.

    The new nodes by rank; None when there is no room on others now: then nothing was changed.
    """
    spec = run.run_spec()
    failed = Attempt.objects.filter(run=run).exclude(launch_failing_since=None).select_related("node")
    engines = {(node.executor, node.engine_url) for attempt in failed for node in nodes_of(attempt)}
    rooms = [room for group in read_world(run.resource_group).groups for room in group.nodes]
    nodes = Node.objects.in_bulk([room.id for room in rooms])
    others = [
        room
        for room in rooms
        if (nodes[room.id].executor, nodes[room.id].engine_url) not in engines
        and (not spec.node_names or room.name in spec.node_names)
    ]
    found = place(containers_of(spec), others)
    if found is None:
        return None
    chosen = [nodes[room.id] for room in found]
    with transaction.atomic():
        release(attempt_id=ended.pk)
        booked = reserve(
            attempt_id=to_attempt,
            tenant_id=run.tenant_id,
            user_id=run.created_by_id,
            placements=placements_of(spec, chosen),
        )
        if isinstance(booked, Shortage):
            transaction.set_rollback(True)
            return None
    return chosen
