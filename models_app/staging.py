"""Folders in object stores that a run is to read: a run of its own fetches them first.

The program of the user has no network and never sees a key of a store: only the fetching run can read that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4, uuid5

from django.conf import settings
from django.db import transaction

from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.problems import Problems
from clavier.files.models import MIB
from clavier.files.queries import storage_left
from clavier.images.logins import forget_login, login_path, write_login
from clavier.runs.models import Run
from clavier.runs.own_code import STORED, OwnCode, stored_folders
from clavier.runs.services import submit_run
from clavier.runs.states import RunState
from models_app.object_stores import login_of, store_at
from runner.contract.run_spec import Limits, Mount, Resources, RunKind, RunSpec

PROGRAM = "runner.programs.models.stage_folders"
MAX_FILES = 100_000


def check_stored_folders(actor: Actor, problems: Problems, code: OwnCode) -> None:
    """Each folder in an object store names one of the tenant's; what is refused is added to ``problems``."""
    for name, location in stored_folders(code).items():
        problems.check(store_at, actor, location.removeprefix(STORED), field=name)


def stage_folders(
    actor: Actor, code: OwnCode, *, kind: RunKind, name: str, subject_id: UUID, splits: Sequence[str] = ()
) -> tuple[Run, OwnCode] | None:
    """The run that fetches the folders which lie in object stores, and the own code that says so.

    None where there is nothing to fetch, or it has been fetched. ``splits``: what a data folder must hold.
    Raises Invalid, Unprocessable for a store that is gone or not allowed any more, Conflict (``secret_lost``).
    """
    stored = stored_folders(code)
    was_fetched = code.staged_run and Run.objects.filter(pk=code.staged_run, state=RunState.COMPLETED).exists()
    if not stored or was_fetched:
        return None
    run_id, tenant = uuid4(), own_tenant(actor)
    folders: list[dict[str, Any]] = []
    logins = {}
    for folder, location in stored.items():
        store, path = store_at(actor, location.removeprefix(STORED), field=folder)
        key = key_of(run_id, folder)
        logins[key] = login_of(store)
        about = {"name": folder, "location": path, "endpoint": store.endpoint_url, "region": store.region}
        inside = list(splits) if folder == "data_folder" else []
        folders.append({**about, "credentials": str(login_path(key)), "inside": inside})
    left = storage_left(actor)["bytes"]
    most = settings.MAX_UPLOAD_MIB * MIB
    spec = RunSpec(
        kind=kind,
        program=PROGRAM,
        parameters={"folders": folders, "max_bytes": min(left, most) if left is not None else most,
                    "max_files": MAX_FILES},
        mounts=tuple(Mount(folder["credentials"]) for folder in folders),
        resources=Resources(cpu_milli=500, memory_mib=1024),
        limits=Limits(time_limit_s=24 * 3600),
        needs_network=True,
    )  # fmt: skip
    with transaction.atomic():
        run = submit_run(actor=actor, kind=kind, name=f"fetch {name}", subject_id=subject_id, spec=spec, run_id=run_id)
        for key, login in logins.items():
            write_login(key, login, tenant.number)
    return run, replace(code, staged_run=str(run_id))


def is_staging(run: Run) -> bool:
    """The run fetches what another one is to read."""
    return bool(run.spec["program"] == PROGRAM)


def forget_logins(run: Run) -> None:
    """Delete the files with the keys of the stores; call when the fetching has ended."""
    for folder in run.spec["parameters"]["folders"]:
        forget_login(key_of(run.pk, folder["name"]))


def key_of(run_id: UUID, folder: str) -> UUID:
    """Which file has the login for a folder of a run."""
    return uuid5(run_id, folder)
