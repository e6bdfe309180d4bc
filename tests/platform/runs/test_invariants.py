"""Each invariant, broken on purpose behind the platform's back, is found and named; a healthy platform has none."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.utils import timezone

from clavier.accounts.models import Tenant
from clavier.files.models import StorageUsage, TenantStorage
from clavier.quotas.models import Gpu, GpuBooking, Reservation, Usage
from clavier.quotas.services import set_cap
from clavier.runs import folders, invariants
from clavier.runs.folders import count_folder, count_left_out
from clavier.runs.models import Attempt, Outbox, Run, RunEvent, RunFolder
from clavier.runs.outputs import run_folder
from clavier.runs.services import delete_run
from models_app.models import ModelVersion, RegisteredModel
from runner.contract.run_spec import Resources, Role
from runner.executors.fake import FakeExecutor
from runner.worker import housekeeping
from runner.worker import invariants as watching
from runner.worker.housekeeping import Housekeeping, remove_abandoned
from runner.worker.invariants import Watch, check_everything, last_report
from tests.engine import make_engine

pytestmark = pytest.mark.django_db

LONG_AGO = timedelta(hours=2)


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    made = make_engine(monkeypatch)
    monkeypatch.setattr(watching, "executor", lambda name: made.executor)
    return made


@pytest.fixture
def completed(engine, alice):
    run = engine.submit(alice)
    engine.step(3)
    run.refresh_from_db()
    assert run.state == "COMPLETED"
    Outbox.objects.all().delete()
    return run


@pytest.fixture
def running(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "RUNNING"
    Outbox.objects.all().delete()
    return run


def found() -> list[str]:
    """Every finding, once by the whole look and once by the minute's."""
    whole = [str(finding) for finding in check_everything().findings]
    lately = [str(finding) for finding in check_everything(timezone.now() - timedelta(minutes=10)).findings]
    assert lately == whole
    return whole


def execute(sql: str, *values: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def force_state(run: Run, state: str) -> None:
    """Past the trigger, as a mistaken hand in the database would need it."""
    if connection.vendor == "sqlite":
        execute("DROP TRIGGER runs_run_state_guard")
    else:
        execute("SET CONSTRAINTS ALL IMMEDIATE")  # a table with checks still to be made is not altered
        execute("ALTER TABLE runs_run DISABLE TRIGGER runs_run_state_guard")
    Run.objects.filter(pk=run.pk).update(state=state, updated_at=timezone.now())


def test_a_healthy_platform_has_no_finding(completed, engine, alice):
    engine.will(runs_for_s=None)
    engine.submit(alice)
    engine.step()
    engine.submit(alice)
    assert found() == []


def test_i1_a_live_attempt_without_a_reservation(running):
    attempt = running.attempts.get()
    Reservation.objects.all().delete()
    Usage.objects.update(used=0)
    assert found() == [f"I1: attempt 1 of {running.pk} is live and holds no reservation"]
    assert attempt.ended_at is None


def test_i1_a_live_attempt_that_holds_less_than_its_containers_need(running):
    attempt = running.attempts.get()
    node = attempt.node
    cpu = Usage.objects.get(scope="node", resource="cpu_milli")
    Reservation.objects.filter(usage=cpu).update(amount=40)
    Usage.objects.filter(pk=cpu.pk).update(used=40)
    lacking = f"I1: attempt 1 of {running.pk} holds 40 of cpu_milli of node {node.pk}, its containers need 100"
    assert found() == [lacking]
    Reservation.objects.filter(usage=cpu).delete()
    Usage.objects.filter(pk=cpu.pk).update(used=0)
    assert found() == [lacking.replace("holds 40", "holds 0")]


def test_i1_a_rank_without_its_gpu_and_a_gang_without_a_rank(running):
    attempt = running.attempts.get()
    gpu = Gpu.objects.create(uuid="GPU-0", node=attempt.node, memory_mib=80_000, cores_used=100, memory_used_mib=80_000)
    booking = GpuBooking.objects.create(
        gpu=gpu, attempt_id=attempt.pk, rank=1, is_whole=True, cores_percent=100, memory_mib=80_000
    )
    Usage.objects.filter(resource="gpus").delete()
    resources = Resources(cpu_milli=100, memory_mib=64, gpus=1)
    spec = replace(running.run_spec(), resources=resources)
    Run.objects.filter(pk=running.pk).update(spec=spec.to_json())
    assert found() == [
        f"I1: attempt 1 of {running.pk} holds 0 devices of node {attempt.node} for rank 0, which needs 1"
    ]
    GpuBooking.objects.filter(pk=booking.pk).update(rank=0)
    assert found() == []
    Run.objects.filter(pk=running.pk).update(spec=replace(spec, roles=(Role("worker", 2, resources),)).to_json())
    assert found() == [f"I1: attempt 1 of {running.pk} has places for 1 of 2 containers"]


def test_the_first_cap_of_a_node_counts_what_its_live_attempts_hold(running):
    node = running.attempts.get().node
    set_cap(scope="node", scope_id=node.pk, resource="running_runs", cap=5)
    assert Usage.objects.get(resource="running_runs").used == 1
    assert found() == []


def test_i1_an_ended_attempt_that_still_holds_something(completed):
    attempt = completed.attempts.get()
    held = Reservation.objects.filter(usage__resource="cpu_milli")
    assert held.update(released_at=None) == 1
    Usage.objects.filter(resource="cpu_milli").update(used=F("used") + 100)
    (finding,) = found()
    assert finding.startswith(f"I1: attempt {attempt.pk} has ended or is unknown and still holds 100 of cpu_milli")


def test_i2_usage_that_is_not_the_sum(completed):
    Usage.objects.filter(resource="memory_mib").update(used=7)
    (finding,) = found()
    assert finding.startswith("I2: memory_mib of node")
    assert "but open reservations sum to 0" in finding


def test_i3_a_gpu_that_an_ended_attempt_still_holds(completed):
    attempt = Attempt.objects.get()
    gpu = Gpu.objects.create(uuid="GPU-0", node=attempt.node, memory_mib=80_000, cores_used=100, memory_used_mib=80_000)
    GpuBooking.objects.create(gpu=gpu, attempt_id=attempt.pk, is_whole=True, cores_percent=100, memory_mib=80_000)
    assert found() == [f"I3: attempt {attempt.pk} has ended or is unknown and still holds GPU-0"]


def test_i4_a_process_of_nobody(engine, completed, running):
    attempt = running.attempts.get()
    Reservation.objects.all().delete()
    Usage.objects.update(used=0)
    name = str(attempt.pk)
    RunEvent.objects.filter(run=running).delete()
    Attempt.objects.filter(run=running).delete()
    Run.objects.filter(pk=running.pk).delete()
    assert found() == [f"I4: {name} is running and belongs to no attempt"]


def test_i4_a_process_whose_attempt_ended_long_ago(engine, running):
    attempt = running.attempts.get()
    with_no_process = engine.executor.list
    Attempt.objects.filter(pk=attempt.pk).update(ended_at=timezone.now() - LONG_AGO)
    assert any(finding.startswith(f"I4: {attempt.pk} is running, its attempt ended at ") for finding in found()), (
        with_no_process()
    )


def test_i5_a_completed_run_whose_file_is_gone_or_has_another_size(completed):
    path = run_folder(completed.pk) / "output" / "hello.txt"
    path.write_text("hello!")
    (finding,) = found()
    assert finding == f"I5: run {completed.pk} is COMPLETED, but: hello.txt has 6 bytes, output/MANIFEST.json says 5."
    path.unlink()
    assert "which is not there" in found()[0]
    (path.parent / "MANIFEST.json").unlink()
    assert "ended without output/MANIFEST.json" in found()[0]


def test_i6_a_run_without_a_live_attempt(running):
    Reservation.objects.all().delete()
    Usage.objects.update(used=0)
    Attempt.objects.update(ended_at=timezone.now())
    assert found() == [f"I6: run {running.pk} is RUNNING without a live attempt"]


def test_i6_an_attempt_of_which_the_executor_knows_nothing(running, monkeypatch):
    monkeypatch.setattr(watching, "executor", lambda name: FakeExecutor())
    assert found() == [], "it may be on its way"
    long_ago = timezone.now() - LONG_AGO
    Attempt.objects.update(created_at=long_ago)
    RunEvent.objects.update(at=long_ago)
    (finding,) = found()
    assert finding.startswith(f"I6: run {running.pk} is RUNNING, and ")
    assert finding.endswith(f"knows nothing of attempt 1 of {running.pk}")


def test_i7_a_temporary_file_of_long_ago_which_housekeeping_removes(completed, settings, home):
    half = run_folder(completed.pk) / "checkpoints" / ".tmp-step-00000010-1"
    half.mkdir(parents=True)
    upload = home / "uploads" / "tmpabc.upload"
    upload.write_text("half")
    assert found() == []
    for path in (half, upload):
        os.utime(path, (time.time() - 7200,) * 2)
    assert found() == [f"I7: {half} was left behind 2.0 hours ago", f"I7: {upload} was left behind 2.0 hours ago"]
    assert remove_abandoned() == [upload, half]
    assert found() == []


def test_i2_what_a_run_leaves_is_charged_to_its_owner_counted_anew_and_given_back_with_the_run(completed, home):
    def used() -> set[tuple[int, int]]:
        rows = (*StorageUsage.objects.all(), *TenantStorage.objects.all())
        return {(row.bytes_used, row.inodes_used) for row in rows}

    StorageUsage.objects.update(bytes_limit=1)
    left = list(run_folder(completed.pk).rglob("*"))
    num_bytes = sum(path.stat().st_size for path in left if path.is_file())
    assert num_bytes > 1, "a limit does not keep out what is there"
    assert used() == {(num_bytes, len(left))}
    (run_folder(completed.pk) / "log.txt").open("a").write("more")
    count_folder(completed.pk)
    assert used() == {(num_bytes + 4, len(left))}
    RunFolder.objects.all().delete()
    assert [finding.split(":")[0] for finding in found()] == ["I2", "I2"]
    StorageUsage.objects.update(bytes_used=0, inodes_used=0)
    TenantStorage.objects.update(bytes_used=0, inodes_used=0)
    count_left_out()
    assert (used(), found()) == ({(num_bytes + 4, len(left))}, [])
    delete_run(run=completed)
    assert (used(), found()) == ({(0, 0)}, [])


def test_a_folder_that_can_not_be_read_holds_up_no_other_sweep(completed, monkeypatch, settings):
    def unreadable(path):
        raise PermissionError(path)

    swept = []
    monkeypatch.setattr(folders, "measure", unreadable)
    sweeps = {"count": count_left_out, "broken": broken, "next": lambda: swept.append(1)}
    monkeypatch.setattr(housekeeping, "import_string", sweeps.get)
    RunFolder.objects.all().delete()
    settings.SWEEPS = list(sweeps)
    Housekeeping().tidy()
    assert swept == [1]


def broken():
    raise RuntimeError("a bug")


def test_i7_a_user_may_call_a_file_as_she_likes(completed, settings):
    named = settings.CLAVIER_FILES / "t" / "u" / "private" / ".tmp-mine"
    named.parent.mkdir(parents=True)
    named.write_text("mine")
    os.utime(named, (time.time() - 7200,) * 2)
    assert found() == []
    assert remove_abandoned() == []
    assert named.exists()


def test_i8_a_wake_up_that_nobody_heard(completed):
    row = Outbox.objects.create(run_id=completed.pk)
    assert found() == []
    Outbox.objects.filter(pk=row.pk).update(created_at=timezone.now() - LONG_AGO)
    (finding,) = found()
    assert finding.startswith(f"I8: the wake-up for run {completed.pk} has waited since")


def test_i9_rows_that_refer_to_another_tenants(completed, charlie):
    two = Tenant.objects.get(pk=charlie.tenant_id)
    model = RegisteredModel.objects.create(tenant=two, created_by_id=charlie.user_id, name="m")
    version = ModelVersion.objects.create(
        tenant=two, created_by_id=charlie.user_id, model=model, number=1, source="folder", run=completed
    )
    assert found() == [
        f"I9: models_app.ModelVersion {version.pk} of tenant {two.pk} refers by run to tenant {completed.tenant_id}"
    ]


def test_i10_events_that_do_not_lead_to_the_state(completed):
    force_state(completed, "FAILED")
    assert found() == [f"I10: run {completed.pk} is FAILED, its events lead to COMPLETED"]


def test_i10_an_event_on_no_edge(completed):
    RunEvent.objects.create(run=completed, from_state="COMPLETED", to_state="COMPLETED")
    assert found() == [f"I10: run {completed.pk} has an event COMPLETED -> COMPLETED while it was COMPLETED"]


def test_of_an_executor_that_does_not_answer_nothing_is_concluded(engine, running):
    Attempt.objects.update(created_at=timezone.now() - LONG_AGO)
    RunEvent.objects.update(at=timezone.now() - LONG_AGO)
    engine.executor.fail("list")
    report = check_everything()
    assert report.findings == []
    assert report.silent == ["local_process: engine down"]


def told(*words: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    out = StringIO()
    try:
        call_command("check_invariants", *words, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_the_command_says_what_it_found_and_ends_with_one(completed):
    assert told() == (0, "I1 to I10 hold.\n")
    Usage.objects.filter(resource="memory_mib").update(used=7)
    code, words = told()
    assert (code, words[:16]) == (1, "I2      memory_m")
    code, words = told("--json")
    assert code == 1
    assert [finding["invariant"] for finding in json.loads(words)["findings"]] == ["I2"]


def test_the_command_notices_a_trigger_that_was_lost(completed):
    force_state(completed, "FAILED")
    code, words = told("--install", "--json")
    messages = [finding["message"] for finding in json.loads(words)["findings"]]
    assert code == 1
    lost = any("trigger runs_run_state_guard is gone" in message for message in messages)
    assert lost is (connection.vendor == "sqlite")
    assert any("no heartbeat" in message for message in messages)


def test_the_reconciler_looks_each_minute_and_keeps_what_it_found(completed, monkeypatch, caplog, home):
    now = time.monotonic()
    monkeypatch.setattr(watching.time, "monotonic", lambda: now)
    watch = Watch()
    assert not watch.is_due
    Usage.objects.filter(resource="memory_mib").update(used=7)
    for _ in range(2):
        now += 61
        assert watch.is_due
        watch.look()
        assert not watch.is_due
    assert "invariant broken: I2" in caplog.text
    assert last_report()["total_findings"] == 2
    assert [finding["invariant"] for finding in last_report()["findings"]] == ["I2"]


def test_every_model_of_a_tenant_is_looked_at():
    paths = {model.__name__: invariants.tenant_path(model) for model in invariants.apps.get_models()}
    assert paths["Run"] == "tenant_id"
    assert paths["Attempt"] == "run__tenant_id"
    assert paths["Replica"] == "service_version__service__tenant_id"
    assert paths["User"] is None
