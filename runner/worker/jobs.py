"""What RQ calls. Each job is short, carries an id or nothing, and may run twice without harm."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from clavier.quotas.models import Node
from clavier.quotas.services import gpus_of
from clavier.runs import queue
from clavier.runs.elsewhere import nodes_of
from clavier.runs.models import Attempt, Outbox, Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import give_up_attempt, note_once
from clavier.runs.states import EndReason, RunState
from runner.contract import folder
from runner.executors.base import ExecutorError, Gang, Launch, LaunchRefused
from runner.worker import scheduler
from runner.worker.engines import engine_of, executor
from runner.worker.layout import lay_out
from runner.worker.ranks import name_of

logger = logging.getLogger(__name__)

#: Executors whose programs share the host's network, so that gangs of one host need different ports.
ON_THE_HOST = ("local_process", "fake")
#: Below what systems choose ports of outgoing connections from.
FIRST_PORT, NUM_PORTS = 20_000, 12_000


def schedule(outbox_id: str = "") -> None:
    """A scheduler pass, unless one began since the wake-up was written; and the first start that follows from it.

    By then the pass is over and its lease given up, and the other starts are in the queue: an engine that hangs holds
    up this job only. Where the job ends before, the reconciler starts what the executors do not know.
    """
    if outbox_id and not Outbox.objects.filter(pk=int(outbox_id)).exists():
        return
    own: list[UUID] = []

    def tell(attempt_id: UUID) -> None:
        if own:
            queue.enqueue_launch(attempt_id)
        else:
            own.append(attempt_id)

    scheduler.schedule_pass(tell)
    for attempt_id in own:
        launch(str(attempt_id))


def launch(attempt_id: str, *, is_due: bool = False) -> None:
    """Start all containers of an attempt, or adopt what an earlier call started.

    ``is_due``: the caller knows, whatever the clock says now, that a retry has waited long enough.
    """
    live = Attempt.objects.select_related("run__tenant", "node").filter(pk=UUID(attempt_id), ended_at=None)
    attempt = live.first()
    if attempt is None or not is_wanted(attempt):
        return
    if not is_due and attempt.not_before is not None and attempt.not_before > timezone.now():
        return
    nodes = nodes_of(attempt)
    try:
        prepare_folder(attempt.run)
        if not is_wanted(attempt):  # copying takes its time, and nothing is known of the attempt meanwhile
            return
        for started, node in zip(launches_of(attempt, nodes), nodes, strict=True):
            executor(engine_of(node)).start(started)
    except LaunchRefused as refusal:  # other ranks may have started, so nothing is given back yet
        give_up_attempt(attempt=attempt, reason=EndReason.INVALID_SPEC, message=str(refusal))
        return
    except (ExecutorError, OSError) as error:
        logger.warning("start of attempt %s failed: %s", attempt_id, error)
        try_again_or_give_up(attempt, error)
        return
    Attempt.objects.filter(pk=attempt.pk).exclude(launch_failing_since=None).update(launch_failing_since=None)
    if not is_wanted(attempt):
        for rank, node in enumerate(nodes):
            executor(engine_of(node)).stop(name_of(attempt, rank), attempt.run.run_spec().limits.stop_grace_s)


def is_wanted(attempt: Attempt) -> bool:
    """Whether an attempt lives still, nobody has asked it to stop or to leave, and it was not given up."""
    live = Attempt.objects.filter(pk=attempt.pk, ended_at=None, leave_asked_at=None, given_up_reason="")
    return live.filter(run__state__in=(RunState.PREPARING, RunState.RUNNING)).exists()


def try_again_or_give_up(attempt: Attempt, error: Exception) -> None:
    """The reconciler tries again, until the start has failed for too long: then the run needs another place."""
    now = timezone.now()
    since = attempt.launch_failing_since
    if since is None:
        Attempt.objects.filter(pk=attempt.pk, launch_failing_since=None).update(launch_failing_since=now)
    elif now - since >= timedelta(seconds=settings.LAUNCH_PATIENCE_S):
        minutes = (now - since).total_seconds() / 60
        message = f"It could not be started for {minutes:.0f} minutes: {error}"
        give_up_attempt(attempt=attempt, reason=EndReason.INFRASTRUCTURE, message=message)
        return
    note_once(attempt.run, f"It could not be started yet and is tried again: {error}")


def launches_of(attempt: Attempt, nodes: Sequence[Node]) -> list[Launch]:
    """What the executors are told of each container, by rank."""
    run, spec = attempt.run, attempt.run.run_spec()
    gpus = gpus_of(attempt.pk)
    return [
        Launch(
            name=name_of(attempt, rank),
            run_folder=run_folder(run.pk),
            spec=spec,
            owner_id=run.tenant.number,
            gpus=gpus.get(rank, ()),
            labels={"run": str(run.pk), "attempt": str(attempt.number), "tenant": run.tenant.name, "kind": run.kind},
            resources=role.resources,
            gang=gang_of(attempt, rank, nodes) if len(nodes) > 1 else None,
        )
        for rank, role in enumerate(spec.containers())
    ]


def gang_of(attempt: Attempt, rank: int, nodes: Sequence[Node]) -> Gang:
    """Where the containers of a run meet: on this host, in a network of the run's own, or in one that engines share."""
    network, address = f"clavier-{attempt.pk}", "rank-0"
    if nodes[0].executor in ON_THE_HOST:
        address = "127.0.0.1"
    elif len({engine_of(node) for node in nodes}) > 1:  # the planner allows it where a network is shared only
        network, address = nodes[0].engine_network, f"rank-0-{attempt.pk.hex}"
    return Gang(rank, len(nodes), network, address, FIRST_PORT + attempt.pk.int % NUM_PORTS)


def prepare_folder(run: Run) -> Path:
    """Make the run's folder, lay out its work and write its spec, once. Raises LaunchRefused, OSError.

    The spec is written last: until it stands no program has run, so nothing of a program's is in the way.
    """
    path = run_folder(run.pk)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    path.mkdir(exist_ok=True, mode=0o750)
    spec = path / folder.SPEC
    if not spec.exists():
        lay_out(path / folder.WORK, run.run_spec().work, run.tenant.number)
        folder.write_json_durably(spec, json.loads(json.dumps(run.spec)))
        os.chmod(spec, 0o644)
    return path
