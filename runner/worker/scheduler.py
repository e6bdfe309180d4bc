"""Which waiting run starts next, and why the others wait."""

from __future__ import annotations

import logging
from uuid import UUID

from clavier.quotas.models import Node
from clavier.quotas.services import Shortage
from clavier.runs import queue
from clavier.runs.models import Attempt, Run
from clavier.runs.queries import waiting_runs
from clavier.runs.services import begin_attempt

logger = logging.getLogger(__name__)

PASS_LIMIT = 1000


def schedule_pass() -> list[UUID]:
    """Admit every waiting run that fits, by priority and then age; the ids of the new attempts.

    Safe to run many times at once: admission is a conditional UPDATE. A tenant or user whose own cap is reached does
    not hold up the others.
    """
    begun: list[UUID] = []
    blocked: set[tuple[str, UUID, str]] = set()
    nodes: dict[str, list[Node]] = {}
    for node in Node.objects.filter(is_schedulable=True).select_related("resource_group"):
        nodes.setdefault(node.resource_group.name, []).append(node)
    for run in waiting_runs()[:PASS_LIMIT]:
        attempt = admit(run, nodes.get(run.resource_group, []), blocked)
        if attempt is not None:
            begun.append(attempt.pk)
            queue.enqueue_launch(attempt.pk)
    return begun


def admit(run: Run, nodes: list[Node], blocked: set[tuple[str, UUID, str]]) -> Attempt | None:
    """Try each node of the run's group; None when it has to wait, with the reason on the run."""
    owners = {"tenant": run.tenant_id, "user": run.created_by_id}
    shortage: Shortage | None = None
    for node in nodes:
        if any((scope, owners[scope], "running_runs") in blocked for scope in owners):
            shortage = None
            break
        result = begin_attempt(run=run, node=node)
        if isinstance(result, Attempt):
            return result
        if result is None:
            return None
        shortage = result
        if result.scope in owners:
            blocked.add((result.scope, owners[result.scope], result.resource))
            break
    why = str(shortage) if shortage else explain_without_shortage(nodes)
    if why != run.why:
        Run.objects.filter(pk=run.pk, state=run.state).update(why=why)
    return None


def explain_without_shortage(nodes: list[Node]) -> str:
    """Why a run waits when no reservation was tried."""
    if not nodes:
        return "No node of its resource group takes runs now."
    return "The limit of running runs is reached; it starts when one of yours ends."
