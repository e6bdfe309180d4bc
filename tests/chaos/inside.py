"""The campaign's verbs inside of the platform; imported once Django knows the settings of this campaign."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import DatabaseError, InterfaceError, connections

from clavier.accounts.models import User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.core.errors import Conflict
from clavier.files.services import upload_file
from clavier.images.models import ContainerImage, ImageVersion
from clavier.images.services import import_image_archive, register_image
from clavier.quotas.inventory import declare_gpu
from clavier.quotas.models import TenantShare
from clavier.quotas.nvidia import Device
from clavier.quotas.services import ensure_local_node
from clavier.runs.models import Lease, Run
from clavier.runs.queries import RECONCILER_LEASE
from clavier.runs.services import stop_run, submit_run
from runner.contract.run_spec import Image, Limits, Mount, Resources, Role, RunSpec
from tests.chaos.judge import Told
from tests.chaos.kinds import NUM_GPUS, PLAIN, Kind
from tests.conftest import actor_of
from tests.image_tars import docker_archive, image

NOT_NOW = (DatabaseError, InterfaceError)
HERE = Path(__file__).resolve().parent
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class People:
    """``owner`` of most jobs, an operator, whose tenant may have the whole node; ``borrower``: of another tenant."""

    owner: Actor
    borrower: Actor


def make_people() -> People:
    """Once; also the declared GPUs and the share of the node."""
    for name in ("chaos", "borrower"):
        if not User.objects.filter(username=name).exists():
            create_user(username=name, tenant_name=name, password="chaos-secret-1", is_operator=name == "chaos")
    people = People(*(actor_of(User.objects.get(username=name)) for name in ("chaos", "borrower")))
    node = ensure_local_node()
    share = {"cpu_milli": 1000, "memory_mib": 10**6, "gpus": NUM_GPUS}
    TenantShare.objects.update_or_create(
        resource_group=node.resource_group, tenant_id=people.owner.tenant_id, defaults=share
    )
    return people


def declare_gpus(names: Sequence[str]) -> None:
    """Devices that nobody has."""
    node = ensure_local_node()
    for index, name in enumerate(names):
        declare_gpu(node=node, device=Device(name, index, "Imagined", 16 * 1024))


def submit_once(
    actor: Actor,
    name: str,
    subject_id: UUID,
    words: tuple[str, ...],
    folder: Path,
    engine_image: str | None,
    kind: Kind = PLAIN,
) -> None:
    """A run of the journal-keeping program, unless an earlier try had come through."""
    if Run.objects.filter(subject_id=subject_id).exists():
        return
    resources = Resources(cpu_milli=kind.cpu_milli, memory_mib=128, gpus=kind.gpus)
    mounts = [Mount(str(HERE)), Mount(str(folder), writable=True)]
    if kind.gpus:
        mounts.append(Mount(str(folder.parent / "gpus")))
    spec = RunSpec(
        kind="fine_tune",
        program=None,
        parameters={},
        # The image has the base interpreter under its own path; a virtual environment has nothing that it needs.
        argv=(os.path.realpath(sys.executable), str(HERE / words[0]), *words[1:], *(["wait"] if kind.waits else [])),
        mounts=tuple(mounts),
        resources=resources,
        roles=(Role("master", 1, resources), Role("worker", kind.ranks - 1, resources)) if kind.ranks > 1 else (),
        limits=Limits(time_limit_s=1200),
        image=Image(engine_image) if engine_image else None,
        preemptible=kind.is_borrower,
        retries=1000,
    )
    submit_run(actor=actor, kind="fine_tune", name=name, subject_id=subject_id, spec=spec)


def import_once(actor: Actor, name: str) -> UUID:
    """The import of an image of two small layers as ``name:1``; what its run is for."""
    known = ImageVersion.objects.filter(image__name=name).first()
    if known is not None:
        return known.pk
    content = docker_archive(image(architecture=settings.IMAGE_ARCHITECTURES[0]))
    upload = SimpleUploadedFile("image.tar", content)
    file = upload_file(actor=actor, area="private", folder="", name=f"{name}.tar", upload=upload, overwrite=True)
    made = ContainerImage.objects.filter(name=name).first() or register_image(actor=actor, name=name)
    return import_image_archive(actor=actor, image=made, tag="1", file=file).pk


def unfinished_imports(names: Sequence[str]) -> list[str]:
    """Of which image there is not exactly one tag that is ready with its archive."""
    wrong = []
    for name in names:
        states = [
            version.state if version.state != "ready" or version.archive.is_file() else "without its archive"
            for version in ImageVersion.objects.filter(image__name=name)
        ]
        if states != ["ready"]:
            wrong.append(f"{name}: the tags of its image are {states}")
    return wrong


def stop(subject_id: UUID) -> None:
    """As its owner does; it may have been asked before."""
    with suppress(Conflict):
        stop_run(run=Run.objects.get(subject_id=subject_id), actor_name="chaos")


def tell(jobs: dict[str, UUID]) -> dict[str, Told | None]:
    """What the platform says of each job."""
    rows = {run.subject_id: run for run in Run.objects.prefetch_related("attempts")}
    return {name: told_of(rows[subject_id]) if subject_id in rows else None for name, subject_id in jobs.items()}


def told_of(run: Run) -> Told:
    """One run in words of the judge."""
    attempts = sorted(run.attempts.all(), key=lambda attempt: attempt.number)
    last = attempts[-1] if attempts else None
    return Told(
        run.state,
        len(attempts),
        last.ended_at.timestamp() if last is not None and last.ended_at else None,
        run.ended_at.timestamp() if run.ended_at else None,
        run.message,
        sum(attempt.end_reason == "PREEMPTED" for attempt in attempts),
    )


def watcher() -> tuple[int, float]:
    """The epoch of who watches the runs, and when it last did."""
    lease = Lease.objects.get(name=RECONCILER_LEASE)
    return lease.epoch, lease.renewed_at.timestamp()


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
