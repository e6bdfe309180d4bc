"""Submit, stop, begin, retry, finish. ``transition`` is the only door to a run's state."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from clavier.accounts.access import require_operator
from clavier.audit.records import CHANGE, record
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Unprocessable
from clavier.quotas.requests import checked_resources as checked_resources
from clavier.quotas.requests import require_schedulable
from clavier.quotas.services import move_reservations, release
from clavier.runs import queue
from clavier.runs.demand import containers_of, scheduling_columns
from clavier.runs.elsewhere import move_elsewhere, nodes_of
from clavier.runs.folders import give_back_folder
from clavier.runs.models import Attempt, Outbox, Peer, Run, RunEvent
from clavier.runs.outputs import run_folder
from clavier.runs.placing import place
from clavier.runs.states import (
    EDGES,
    FINAL_STATE_OF,
    FINAL_STATES,
    REQUEUED_REASONS,
    RETRIED_REASONS,
    EndReason,
    RunState,
)
from clavier.runs.world import read_world
from runner.contract.run_spec import RunKind, RunSpec
from runner.contract.trees import remove_tree

logger = logging.getLogger(__name__)

FIRST_BACK_OFF = timedelta(seconds=2)
LONGEST_BACK_OFF = timedelta(minutes=5)


def submit_run(
    *,
    actor: Actor,
    kind: RunKind,
    name: str,
    subject_id: UUID,
    spec: RunSpec,
    not_before: datetime | None = None,
    run_id: UUID | None = None,
) -> Run:
    """A new PENDING run. ``run_id``: its id, where the spec names paths of its folder.

    Raises NotFound for a resource group that the actor may not use, Unprocessable (``unschedulable``, ``over_limit``)
    when the group could never take the run.
    """
    require_schedulable(actor=actor, spec=spec)
    require_room_for_all(spec)
    with transaction.atomic():
        run = Run.objects.create(
            pk=run_id or uuid4(),
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            kind=kind,
            name=name,
            subject_id=subject_id,
            spec=spec.to_json(),
            spec_digest=spec.digest(),
            resource_group=spec.resource_group,
            priority=spec.priority,
            not_before=not_before,
            **scheduling_columns(spec),
        )
        RunEvent.objects.create(run=run, to_state=RunState.PENDING, actor_name=actor.username)
        announce(run)
    return run


def transition(
    run: Run,
    to: RunState,
    *,
    reason: EndReason | None = None,
    message: str = "",
    actor_name: str = "",
    calls_hook: bool = True,
    **columns: Any,
) -> bool:
    """Move a run along one edge, with its event, in one transaction; False: someone was faster.

    A final state ends the live attempt, releases its reservations and calls the domain's hook in the same
    transaction. ``calls_hook`` False: its hook can not be called, and the run has to end all the same. ``columns`` are
    further columns of the run to set. Raises ValueError for an edge that is none.
    """
    if to not in EDGES[RunState(run.state)]:
        raise ValueError(f"there is no edge {run.state} -> {to}")
    before, now = run.state, timezone.now()
    columns |= {"state": to, "version": run.version + 1, "updated_at": now}
    if to in FINAL_STATES:
        columns |= {"end_reason": reason or "", "message": message, "ended_at": now}
    with transaction.atomic():
        moved = Run.objects.filter(pk=run.pk, state=before, version=run.version).update(**columns)
        if not moved:
            return False
        for column, value in columns.items():
            setattr(run, column, value)
        RunEvent.objects.create(
            run=run, from_state=before, to_state=to, reason=reason or "", message=message, actor_name=actor_name
        )
        if actor_name:
            verb = "stop" if to in (RunState.STOPPING, RunState.STOPPED) else "move"
            record(run, verb, action=CHANGE, changes={"state": [before, to]})
        if to in FINAL_STATES:
            end_live_attempt(run, reason)
            announce(run)
            if calls_hook:
                import_string(settings.RUN_FINISHED_HOOKS[run.kind])(run)
    return True


def stop_run(*, run: Run, actor_name: str, by_operator: bool = False) -> Run:
    """Ask a run to end: a PENDING run is STOPPED at once, a started one becomes STOPPING. Raises Conflict."""
    reason = EndReason.STOPPED_BY_OPERATOR if by_operator else EndReason.STOPPED_BY_USER
    message = f"Stopped by {actor_name}."
    for _ in range(10):
        run.refresh_from_db()
        if run.state == RunState.STOPPING:
            return run
        if run.is_final:
            raise Conflict(f"The run has ended already ({run.state}).", code="already_ended")
        if run.state == RunState.PENDING:
            done = transition(run, RunState.STOPPED, reason=reason, message=message, actor_name=actor_name)
        else:
            with transaction.atomic():
                done = transition(run, RunState.STOPPING, message=message, actor_name=actor_name, stop_reason=reason)
                if done:
                    announce(run)
        if done:
            return run
    raise Conflict("The run changes too quickly; try again.", code="busy")


def finish_attempt(
    *,
    attempt: Attempt,
    reason: EndReason,
    message: str,
    exit_code: int | None = None,
    ended_at: datetime | None = None,
    max_memory_mib: int | None = None,
    is_last: bool = False,
    calls_hook: bool = True,
) -> bool:
    """An attempt has ended: the run ends too, gets another attempt if the platform was at fault, or waits again.

    ``is_last``: the run ends now, whatever the reason. ``calls_hook``: as in ``transition``.
    Idempotent: False when the attempt was finished already or someone was faster.
    """
    with transaction.atomic():
        ended = Attempt.objects.filter(pk=attempt.pk, ended_at=None).update(
            ended_at=ended_at or timezone.now(),
            exit_code=exit_code,
            end_reason=reason,
            max_memory_mib=max_memory_mib,
        )
        if not ended:
            return False
        run = Run.objects.get(pk=attempt.run_id)
        if run.state == RunState.STOPPING:
            reason, message = EndReason(run.stop_reason), run_stop_message(run)
        elif reason in REQUEUED_REASONS:
            return wait_again(run, attempt, reason, message, preempted_at=timezone.now())
        elif (
            not is_last and reason in RETRIED_REASONS and (failures := platform_failures(run)) <= run.run_spec().retries
        ):
            return retry(run, attempt, reason, message, back_off=back_off_after(failures))
        release(attempt_id=attempt.pk)
        if not transition(run, FINAL_STATE_OF[reason], reason=reason, message=message, calls_hook=calls_hook):
            transaction.set_rollback(True)
            return False
    return True


def fail_unrecorded(*, attempt: Attempt, error: Exception, calls_hook: bool) -> bool:
    """What a run made could not be taken over for too long: it fails, its files stay, and operators are told.

    False: it was finished meanwhile.
    """
    words = f"{type(error).__name__}: {error}"
    with transaction.atomic():
        failed = finish_attempt(
            attempt=attempt,
            reason=EndReason.INFRASTRUCTURE,
            message=f"The program ended, but what it made could not be taken over. Tell your operator: {words}",
            is_last=True,
            calls_hook=calls_hook,
        )
        if failed:
            run = Run.objects.get(pk=attempt.run_id)
            note(run, f"For operators: its files are still in {run_folder(run.pk)}.")
            record(run, "end_not_recorded", action=CHANGE, changes={"state": ["", run.state]}, error=words)
    return failed


def give_up_attempt(*, attempt: Attempt, reason: EndReason, message: str) -> bool:
    """An attempt can not go on: its containers are stopped, and only once they are gone it ends for this reason.

    Idempotent: the first reason stands, False for a later one.
    """
    live = Attempt.objects.filter(pk=attempt.pk, ended_at=None, given_up_reason="")
    return bool(live.update(given_up_reason=reason, given_up_message=message))


def mark_running(*, attempt: Attempt, started_at: datetime) -> bool:
    """PREPARING -> RUNNING once the executor says so. False when someone was faster."""
    run = Run.objects.get(pk=attempt.run_id)
    Attempt.objects.filter(pk=attempt.pk, started_at=None).update(started_at=started_at)
    if run.state != RunState.PREPARING:
        return False
    return transition(run, RunState.RUNNING, started_at=run.started_at or started_at)


def change_priority(*, actor: Actor, run: Run, priority: int) -> Run:
    """An operator moves a waiting run up or down. Raises Forbidden, Conflict when it waits no more."""
    require_operator(actor, to_write=True)
    before = run.priority
    with transaction.atomic():
        changed = Run.objects.filter(pk=run.pk, state=RunState.PENDING).update(priority=priority)
        if not changed:
            raise Conflict("The run waits no more, so its priority no longer matters.", code="already_started")
        note(run, f"Priority {before} -> {priority}.", actor_name=actor.username)
        record(run, "prioritise", action=CHANGE, changes={"priority": [str(before), str(priority)]})
        announce(run)
    run.priority = priority
    return run


def note(run: Run, message: str, *, actor_name: str = "") -> None:
    """Something worth knowing that is no change of state."""
    RunEvent.objects.create(run=run, message=message, actor_name=actor_name)


def note_once(run: Run, message: str) -> None:
    """The same, unless it is the last thing that was noted."""
    last = RunEvent.objects.filter(run=run).order_by("-pk").first()
    if last is None or last.message != message:
        note(run, message)


def announce(run: Run) -> None:
    """Wake the scheduler after the commit; the outbox row stays until a pass has begun that saw it."""
    row = Outbox.objects.create(run_id=run.pk)
    transaction.on_commit(lambda: queue.tell(row.pk))


def delete_run(*, run: Run) -> None:
    """Forget an ended run and its folder. Raises Conflict while it lives."""
    if not run.is_final:
        raise Conflict("The run has not ended; stop it first.", code="in_use")
    folder = run_folder(run.pk)
    with transaction.atomic():
        # A count of the folder that goes on ends first, or what it charges would never be given back.
        Run.objects.select_for_update(of=("self",)).filter(pk=run.pk).first()
        give_back_folder(run)
        run.delete()
        transaction.on_commit(lambda: remove_folder(folder))


def remove_folder(folder: Path) -> None:
    """Remove what a run left, however deep; what can not be removed is the operator's to see to."""
    try:
        remove_tree(folder)
    except OSError as error:
        logger.error("%s of a deleted run can not be removed: %s", folder, error)


def require_room_for_all(spec: RunSpec) -> None:
    """Raises Unprocessable when even empty nodes could not take all containers of a run at once."""
    if spec.num_containers == 1:
        return
    names = frozenset(spec.node_names)
    nodes = [
        node.with_free(node.capacity)
        for group in read_world(spec.resource_group, is_open=False).groups
        for node in group.nodes
        if not names or node.name in names
    ]
    if place(containers_of(spec), nodes) is None:
        raise Unprocessable(
            f"The nodes of group {spec.resource_group} could not take all {spec.num_containers} containers at once, "
            "even when empty. Ask for fewer or smaller ones. They share one engine, unless engines share a network.",
            code="unschedulable",
            field="roles",
        )


def end_live_attempt(run: Run, reason: EndReason | None) -> None:
    """Close the run's live attempt, if there is one, and give back what it holds."""
    for attempt in Attempt.objects.filter(run=run, ended_at=None):
        Attempt.objects.filter(pk=attempt.pk).update(ended_at=timezone.now(), end_reason=reason or "")
        release(attempt_id=attempt.pk)


def retry(run: Run, ended: Attempt, reason: EndReason, message: str, *, back_off: timedelta) -> bool:
    """Try again after the back-off: with the same resources, or on other nodes when one of these takes no runs now.

    What could not be started is tried on another engine, if one has room.
    """
    due = timezone.now() + back_off
    ranks, next_id, where = nodes_of(ended), uuid4(), ""
    if not all(node.is_schedulable for node in ranks):
        message = f"{message} The platform was at fault, and its node takes no new runs: it waits for another one."
        return wait_again(run, ended, reason, message, not_before=due)
    others = None
    if ended.given_up_reason:
        others = move_elsewhere(run=run, ended=ended, to_attempt=next_id)
    if others is not None:
        ranks, where = others, f" on {', '.join(sorted({node.name for node in others}))}"
    following = Attempt.objects.create(pk=next_id, run=run, number=ended.number + 1, node=ranks[0], not_before=due)
    Peer.objects.bulk_create(
        Peer(attempt=following, rank=rank, node=node) for rank, node in enumerate(ranks) if rank > 0
    )
    if others is None:
        move_reservations(from_attempt=ended.pk, to_attempt=following.pk)
    when = f"attempt {following.number} in {back_off.total_seconds():g} s{where}"
    RunEvent.objects.create(run=run, reason=reason, message=f"{message} The platform was at fault: {when}.")
    return True


def wait_again(run: Run, ended: Attempt, reason: EndReason, message: str, **columns: Any) -> bool:
    """Back to PENDING without any resources; its folder stays, so it goes on from its newest sealed checkpoint."""
    release(attempt_id=ended.pk)
    moved = transition(run, RunState.PENDING, reason=reason, message=message, queued_at=timezone.now(), **columns)
    if not moved:
        transaction.set_rollback(True)
        return False
    announce(run)
    return True


def platform_failures(run: Run) -> int:
    """Attempts that ended because the platform was at fault."""
    return Attempt.objects.filter(run=run, end_reason__in=RETRIED_REASONS).count()


def back_off_after(failures: int) -> timedelta:
    """It doubles."""
    return min(FIRST_BACK_OFF * int(2 ** (failures - 1)), LONGEST_BACK_OFF)


def run_stop_message(run: Run) -> str:
    """Who asked the run to stop."""
    event = RunEvent.objects.filter(run=run, to_state=RunState.STOPPING).last()
    return event.message if event else "Stopped."
