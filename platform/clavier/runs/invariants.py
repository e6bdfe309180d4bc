"""What must always hold (I1 to I10 of docs/chaos.md), as far as rows and run folders tell.

Each function yields sentences; none means that all is well. ``since``: only what changed from then on (None: all),
so that the reconciler can look each minute. ``runner.worker.invariants`` adds what only the executors know.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

from django.apps import apps
from django.conf import settings
from django.db.models import CASCADE, Exists, F, ForeignKey, Model, OuterRef, QuerySet
from django.utils import timezone

from clavier.core.snapshot import snapshot
from clavier.files.usage import audit_storage
from clavier.quotas.audit import audit_holders, audit_usage
from clavier.quotas.bulk import Wanted
from clavier.quotas.gpus import num_devices
from clavier.quotas.models import GpuBooking, Reservation, Usage
from clavier.runs.elsewhere import placements_of
from clavier.runs.models import Attempt, Outbox, Run, RunEvent
from clavier.runs.outputs import check_manifest
from clavier.runs.states import ACTIVE_STATES, EDGES, RunState
from runner.contract import trees

FRESH = timedelta(seconds=60)
OLDEST_TEMPORARY_S = 3600.0
#: Folders of CLAVIER_HOME that hold no data; a temporary file there harms nobody.
NOT_DATA = ("run", "logs", "static", "queue")
MOST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should never be: which invariant, and what exactly, in words."""

    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


Check = Callable[[datetime | None], Iterator[str]]


def find_all(since: datetime | None = None) -> list[Finding]:
    """Every finding that rows and folders give, as of one moment of the database."""
    with snapshot():
        return [Finding(name, message) for name, check in CHECKS for message in check(since)]


def reservations(since: datetime | None) -> Iterator[str]:
    """I1: each live attempt holds what all of its containers need, of every cap and in devices; each ended one none."""
    caps = {(cap.scope, cap.scope_id, cap.resource): cap for cap in Usage.objects.all()}
    held: dict[UUID, dict[int, int]] = defaultdict(dict)
    for attempt_id, usage_id, amount in Reservation.objects.filter(released_at=None).values_list(
        "attempt_id", "usage_id", "amount"
    ):
        held[attempt_id][usage_id] = amount
    booked = GpuBooking.objects.filter(released_at=None).values_list("attempt_id", "rank", "gpu__node_id")
    devices = Counter(booked.order_by().iterator(2000))
    live_attempts = Attempt.objects.filter(ended_at=None).select_related("run", "node").prefetch_related("peers__node")
    for attempt in live_attempts.order_by("pk").iterator(500):
        yield from lacking(attempt, caps, held.get(attempt.pk, {}), devices)
    live = Attempt.objects.filter(pk=OuterRef("attempt_id"), ended_at=None)
    loose = Reservation.objects.filter(~Exists(live), released_at=None).select_related("usage")
    for reservation in loose[:MOST_SHOWN]:
        owner = f"{reservation.usage.scope} {reservation.usage.scope_id}"
        yield (
            f"attempt {reservation.attempt_id} has ended or is unknown and still holds "
            f"{reservation.amount} of {reservation.usage.resource} of {owner}"
        )


def lacking(
    attempt: Attempt,
    caps: Mapping[tuple[str, UUID, str], Usage],
    held: Mapping[int, int],
    devices: Mapping[tuple[UUID, int, UUID], int],
) -> Iterator[str]:
    """What a live attempt holds too little or too much of. ``held``: Usage -> amount; ``devices``: of any attempt."""
    nodes = [attempt.node, *(peer.node for peer in attempt.peers.all())]
    spec = attempt.run.run_spec()
    if len(nodes) != spec.num_containers:
        yield f"{attempt} has places for {len(nodes)} of {spec.num_containers} containers"
        return
    places = placements_of(spec, nodes)
    wanted = {
        caps[(*owner, resource)].pk: amount
        for owner, amounts in Wanted(attempt.pk, attempt.run.tenant_id, attempt.run.created_by_id, places)
        .amounts()
        .items()
        for resource, amount in amounts.items()
        if amount and (*owner, resource) in caps
    }
    if wanted and not held:
        yield f"{attempt} is live and holds no reservation"
        return
    different = {pk for pk in held.keys() | wanted.keys() if held.get(pk, 0) != wanted.get(pk, 0)}
    for cap in caps.values() if different else ():
        if cap.pk in different:
            yield (
                f"{attempt} holds {held.get(cap.pk, 0)} of {cap.resource} of {cap.scope} {cap.scope_id}, "
                f"its containers need {wanted.get(cap.pk, 0)}"
            )
    for place in places:
        needed = 0 if place.node.assigns_gpus else num_devices(place.resources)
        found = devices.get((attempt.pk, place.rank, place.node.pk), 0)
        if found != needed:
            yield f"{attempt} holds {found} devices of node {place.node} for rank {place.rank}, which needs {needed}"


def usage(since: datetime | None) -> Iterator[str]:
    """I2: what is used is the sum of the open reservations, GPU bookings, and what is stored."""
    for sentence in (*audit_usage(), *audit_storage()):
        yield sentence.removeprefix("I2: ")


def gpu_holders(since: datetime | None) -> Iterator[str]:
    """I3: each holder of a GPU is a live attempt, and whole ones are held once."""
    live = Attempt.objects.filter(pk=OuterRef("attempt_id"), ended_at=None)
    for booking in GpuBooking.objects.filter(~Exists(live), released_at=None)[:MOST_SHOWN]:
        yield f"attempt {booking.attempt_id} has ended or is unknown and still holds {booking.gpu_id}"
    yield from audit_holders()


def manifests(since: datetime | None) -> Iterator[str]:
    """I5: each completed run has a manifest, and its files are there with the sizes it names."""
    for run in changed(Run.objects.filter(state=RunState.COMPLETED), since, "ended_at").iterator(500):
        manifest, wrong = check_manifest(run.pk)
        if manifest is None:
            yield f"run {run.pk} is COMPLETED, but: {wrong}"


def attempts(since: datetime | None) -> Iterator[str]:
    """I6, the rows' part: a run that prepares, runs or stops has a live attempt, every other has none."""
    live = Attempt.objects.filter(run=OuterRef("pk"), ended_at=None)
    for run in Run.objects.filter(~Exists(live), state__in=ACTIVE_STATES)[:MOST_SHOWN]:
        yield f"run {run.pk} is {run.state} without a live attempt"
    for run in Run.objects.filter(Exists(live)).exclude(state__in=ACTIVE_STATES)[:MOST_SHOWN]:
        yield f"run {run.pk} is {run.state} and has a live attempt"


def temporaries(since: datetime | None) -> Iterator[str]:
    """I7: no temporary file is older than an hour. With ``since`` only folders of runs that changed are looked at."""
    oldest = time.time() - OLDEST_TEMPORARY_S
    for path, changed_at in temporary_entries(since):
        if changed_at < oldest:
            yield f"{path} was left behind {(time.time() - changed_at) / 3600:.1f} hours ago"


def outbox(since: datetime | None) -> Iterator[str]:
    """I8: no wake-up waits longer than a minute."""
    for row in Outbox.objects.filter(created_at__lt=timezone.now() - FRESH)[:MOST_SHOWN]:
        yield f"the wake-up for run {row.run_id} has waited since {row.created_at:%Y-%m-%d %H:%M:%S}"


def tenants(since: datetime | None) -> Iterator[str]:
    """I9: no row refers to a row of another tenant, whichever the models are."""
    for model in apps.get_models():
        mine = tenant_path(model)
        if mine is None:
            continue
        for field in model._meta.concrete_fields:
            theirs = tenant_path(field.related_model) if isinstance(field, ForeignKey) else None
            if theirs is None or field.name == "tenant":
                continue
            rows = model._default_manager.annotate(mine=F(mine), theirs=F(f"{field.name}__{theirs}"))
            rows = changed(rows, since, "updated_at").exclude(mine=None).exclude(theirs=None)
            shared_since = getattr(field.related_model, "shared_since", None)
            if shared_since is not None:  # what an operator shares with all tenants, or once did
                rows = rows.filter(**{f"{field.name}__{shared_since}": None})
            for row in rows.exclude(mine=F("theirs")).values("pk", "mine", "theirs")[:MOST_SHOWN]:
                owner = f"{model._meta.label} {row['pk']} of tenant {row['mine']}"
                yield f"{owner} refers by {field.name} to tenant {row['theirs']}"


def histories(since: datetime | None) -> Iterator[str]:
    """I10: a run's events follow the edges, one after the other, and lead to its state."""
    runs = dict(changed(Run.objects.all(), since, "updated_at").values_list("pk", "state"))
    told = RunEvent.objects.exclude(to_state="").order_by("run_id", "pk")
    if since is not None:
        told = told.filter(run_id__in=list(runs))
    steps = told.values_list("run_id", "from_state", "to_state").iterator(2000)
    for run_id, group in groupby(steps, key=lambda step: step[0]):
        at = ""
        for _, before, after in group:
            if before != at or (at and after not in EDGES[RunState(at)]) or (not at and after != RunState.PENDING):
                yield f"run {run_id} has an event {before or '·'} -> {after} while it was {at or 'new'}"
            at = after
        state = runs.pop(run_id, at)
        if state != at:
            yield f"run {run_id} is {state}, its events lead to {at}"
    for run_id, state in runs.items():
        yield f"run {run_id} is {state} and has no event"


CHECKS: tuple[tuple[str, Check], ...] = (
    ("I1", reservations),
    ("I2", usage),
    ("I3", gpu_holders),
    ("I5", manifests),
    ("I6", attempts),
    ("I7", temporaries),
    ("I8", outbox),
    ("I9", tenants),
    ("I10", histories),
)


def changed(rows: QuerySet[Any], since: datetime | None, column: str) -> QuerySet[Any]:
    """The rows whose column is not older than ``since``, where the model has such a column."""
    known = {field.name for field in rows.model._meta.concrete_fields}
    return rows.filter(**{f"{column}__gte": since}) if since is not None and column in known else rows


def tenant_path(model: type[Model] | Any) -> str | None:
    """How to get from a row to its tenant's id: ``tenant_id``, or over the rows it belongs to; None: it has none."""
    if not (isinstance(model, type) and issubclass(model, Model)):
        return None
    fields = [field for field in model._meta.concrete_fields if isinstance(field, ForeignKey)]
    if any(field.name == "tenant" for field in fields):
        return "tenant_id"
    for field in fields:
        owner: Any = field.related_model
        if field.remote_field.on_delete is CASCADE and not field.null and owner is not model:
            path = tenant_path(owner)
            if path is not None:
                return f"{field.name}__{path}"
    return None


def temporary_entries(since: datetime | None) -> Iterator[tuple[str, float]]:
    """What is in the making (``.tmp-*``, uploads being read, folders being built), and when it last changed."""
    home = Path(settings.CLAVIER_HOME)
    if since is None:
        roots = [path for path in home.iterdir() if path.is_dir() and path.name not in NOT_DATA]
        roots = [path for path in roots if not path.name.startswith(".")]  # what a restore has set aside
    else:
        ids = changed(Run.objects.all(), since - timedelta(seconds=OLDEST_TEMPORARY_S), "updated_at")
        roots = [Path(settings.CLAVIER_RUNS) / str(pk) for pk in ids.values_list("pk", flat=True)]
        roots += [Path(settings.CLAVIER_EXECUTOR_FOLDER), Path(settings.FILE_UPLOAD_TEMP_DIR)]
    for root in roots:
        # In a user's own folders any name is legal.
        if root != Path(settings.CLAVIER_FILES):
            for entry in trees.walk(root):
                if entry.name.startswith(".tmp"):
                    with suppress(FileNotFoundError):
                        yield f"{root}/{entry.path}", entry.status().st_mtime
        for path in root.glob(".incoming/*"):
            with suppress(FileNotFoundError):
                yield str(path), path.lstat().st_mtime
    for path in Path(settings.FILE_UPLOAD_TEMP_DIR).glob("*"):
        with suppress(FileNotFoundError):
            yield str(path), path.lstat().st_mtime
