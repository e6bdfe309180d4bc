"""The campaign's verbs inside of the platform; imported once Django knows the settings of this campaign."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone

from clavier.accounts.models import User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.runs.models import Lease, Run
from clavier.runs.queries import RECONCILER_LEASE
from clavier.runs.services import submit_run
from runner.contract.run_spec import Image, Limits, Mount, Resources, RunSpec
from tests.chaos.judge import Told
from tests.conftest import actor_of

NOT_NOW = (DatabaseError, InterfaceError)
HERE = Path(__file__).resolve().parent
Result = TypeVar("Result")


def make_operator() -> Actor:
    """The owner of the jobs, an operator."""
    if not User.objects.filter(username="chaos").exists():
        create_user(username="chaos", tenant_name="chaos", password="chaos-secret-1", is_operator=True)
    return actor_of(User.objects.get(username="chaos"))


def submit_once(
    actor: Actor, name: str, subject_id: UUID, words: tuple[str, ...], folder: Path, image: str | None
) -> None:
    """A run of the journal-keeping program, unless an earlier try had come through."""
    if Run.objects.filter(subject_id=subject_id).exists():
        return
    spec = RunSpec(
        kind="fine_tune",
        program=None,
        parameters={},
        # The image has the base interpreter under its own path; a virtual environment has nothing that it needs.
        argv=(os.path.realpath(sys.executable), str(HERE / words[0]), *words[1:]),
        mounts=(Mount(str(HERE)), Mount(str(folder), writable=True)),
        resources=Resources(cpu_milli=100, memory_mib=128),
        limits=Limits(time_limit_s=600),
        image=Image(image) if image else None,
        retries=1000,
    )
    submit_run(actor=actor, kind="fine_tune", name=name, subject_id=subject_id, spec=spec)


def tell(jobs: dict[str, UUID]) -> dict[str, Told | None]:
    """What the platform says of each job."""
    rows = {run.subject_id: run for run in Run.objects.prefetch_related("attempts")}
    return {name: told_of(rows[subject_id]) if subject_id in rows else None for name, subject_id in jobs.items()}


def told_of(run: Run) -> Told:
    """One run in words of the judge."""
    attempts = sorted(run.attempts.all(), key=lambda attempt: attempt.number)
    last = attempts[-1] if attempts else None
    noticed = None
    if run.state == "COMPLETED" and run.ended_at and last is not None and last.ended_at:
        noticed = (run.ended_at - last.ended_at).total_seconds()
    return Told(run.state, len(attempts), noticed, run.message)


def watcher() -> tuple[float, int]:
    """When the runs were last watched, and the epoch of who did."""
    lease = Lease.objects.get(name=RECONCILER_LEASE)
    return lease.renewed_at.timestamp(), lease.epoch


def try_to(verb: Callable[[], Result]) -> Result | None:
    """None while the database is not there."""
    try:
        return verb()
    except (*NOT_NOW, Lease.DoesNotExist):
        forget_connections()
        return None


def forget_connections() -> None:
    """The next query opens a new one."""
    connections.close_all()


def now() -> float:
    """Seconds since the epoch."""
    return timezone.now().timestamp()
