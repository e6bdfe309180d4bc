"""What the tests of backup and restore run inside of an installation: ``manage.py shell -c "..."``."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from typing import Any
from uuid import uuid4

from django.core.files.uploadedfile import TemporaryUploadedFile

from clavier.accounts.models import Membership, User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.files.models import StoredFile
from clavier.files.services import create_folder, delete_file, open_stored_file, upload_file
from clavier.quotas.models import Node
from clavier.quotas.services import ensure_local_node
from clavier.runs.admission import begin_attempt
from clavier.runs.models import Attempt, Run, RunEvent
from clavier.runs.outputs import run_folder
from clavier.runs.services import finish_attempt, mark_running, submit_run
from clavier.runs.states import EndReason
from runner.contract import folder
from runner.contract.run_spec import Mount, Resources, RunSpec
from runner.worker.jobs import prepare_folder
from tests.conftest import actor_of
from tests.worlds import make_dataset

OUTPUT = b"weights " * 1000


def spooled(content: bytes, name: str = "x.txt") -> TemporaryUploadedFile:
    upload = TemporaryUploadedFile(name, "application/octet-stream", len(content), None)
    upload.write(content)
    upload.seek(0)
    return upload


def alice() -> Actor:
    return actor_of(User.objects.get(username="alice"))


def put(actor: Actor, name: str, content: bytes, into: str = "") -> StoredFile:
    upload = spooled(content)
    return upload_file(actor=actor, area="private", folder=into, name=name, upload=upload, overwrite=True)


def begin(actor: Actor, name: str, **changes: Any) -> tuple[Run, Attempt]:
    """A run whose program the executor would just have started."""
    source = str(run_folder(uuid4()).parent)
    spec = RunSpec(
        kind="fine_tune", program=None, argv=("/bin/true",), parameters={"data": f"{source}/x"},
        mounts=(Mount(source),), resources=Resources(cpu_milli=100, memory_mib=64), **changes,
    )  # fmt: skip
    run = submit_run(actor=actor, kind="fine_tune", name=name, subject_id=uuid4(), spec=spec)
    attempt = begin_attempt(run=run, nodes=[Node.objects.get()])
    assert isinstance(attempt, Attempt)
    prepare_folder(run)
    assert mark_running(attempt=attempt, started_at=attempt.created_at)
    return run, attempt


def complete(run: Run, attempt: Attempt) -> None:
    output = run_folder(run.pk) / folder.OUTPUT
    output.mkdir()
    (output / "w.bin").write_bytes(OUTPUT)
    manifest = {"files": [{"path": "w.bin", "size": len(OUTPUT)}], "kind": "model", "facts": {}}
    folder.write_json_durably(output / folder.MANIFEST, manifest)
    assert finish_attempt(attempt=attempt, reason=EndReason.COMPLETED, message="")


def make() -> None:
    """Alice with files, a data set, a completed run, one that trains and one that trains for the last time."""
    actor = actor_of(create_user(username="alice", tenant_name="one", password="alice-secret-1")[0])
    ensure_local_node()
    put(actor, "a.txt", b"alpha")
    create_folder(actor=actor, area="private", folder="", name="empty")
    create_folder(actor=actor, area="private", folder="", name=".tmp-mine")
    put(actor, ".tmp-b", b"beta", into=".tmp-mine")
    make_dataset(actor, spooled)
    complete(*begin(actor, "done"))
    for name, retries in (("trains", 2), ("trains for the last time", 0)):
        run, _ = begin(actor, name, retries=retries)
        checkpoint = run_folder(run.pk) / "checkpoints" / "step-00000010"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state").write_text("ten")
        (checkpoint.parent / ".tmp-step-00000020-1").mkdir()
        (run_folder(run.pk) / folder.LOG).write_text("step 10\n")


def write_forever() -> None:
    """Files, data sets and runs come and go until somebody ends this."""
    actor, number = alice(), 0
    while True:
        number += 1
        kept = put(actor, f"w{number}.txt", secrets.token_bytes(2000))
        if number % 3 == 0:
            delete_file(actor=actor, file=kept)
        run, attempt = begin(actor, f"w{number}")
        (run_folder(run.pk) / folder.LOG).write_bytes(secrets.token_bytes(5000))
        if number % 4:
            complete(run, attempt)
        else:
            finish_attempt(attempt=attempt, reason=EndReason.EXIT_NONZERO, message="It failed.")
        if number % 5 == 0:
            make_dataset(actor, spooled, name=f"w{number}")
        if number == 3:
            sys.stdout.write("writing\n")
            sys.stdout.flush()


def tell() -> None:
    """One JSON line of what is there."""
    actor = alice()
    files = {}
    for row in StoredFile.objects.filter(tenant_id=actor.tenant_id):
        content = b"" if row.is_folder else open_stored_file(actor=actor, file=row).read()
        assert len(content) == row.size_bytes
        assert row.is_folder or hashlib.sha256(content).hexdigest() == row.sha256
        files[row.path] = content.decode("latin1")
    runs = {run.name: run for run in Run.objects.all()}
    sys.stdout.write(
        json.dumps(
            {
                "files": {path: text for path, text in files.items() if not path.startswith("w")},
                "states": {name: run.state for name, run in runs.items() if not name.startswith("w")},
                "attempts": {name: run.attempts.count() for name, run in runs.items()},
                "live": Attempt.objects.filter(ended_at=None).count(),
                "messages": [event.message for event in RunEvent.objects.filter(run=runs["trains"]).order_by("pk")],
                "last": runs["trains for the last time"].message,
                "mount": runs["trains"].spec["mounts"][0]["source"],
                "data": runs["trains"].spec["parameters"]["data"],
                "digest_is_right": runs["trains"].spec_digest == runs["trains"].run_spec().digest(),
                "trained": sorted(str(path.relative_to(run_folder(runs["trains"].pk)))
                                  for path in run_folder(runs["trains"].pk).rglob("*") if path.is_file()),
                "users": list(User.objects.values_list("username", flat=True)),
                "members": Membership.objects.count(),
                "checkpoint": (run_folder(runs["trains"].pk) / "checkpoints/step-00000010/state").read_text(),
            }
        )
        + "\n"
    )  # fmt: skip
