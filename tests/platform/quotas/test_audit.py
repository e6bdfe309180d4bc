"""Caps and use stay honest: a cap set late counts what runs, drift is told, and only a hand repairs it."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db.models import F
from django.utils import timezone

from clavier.files.models import StorageUsage, TenantStorage
from clavier.files.usage import audit_storage, repair_storage
from clavier.quotas.audit import audit_usage, repair_usage
from clavier.quotas.models import QuotaWindow, Reservation, Usage
from clavier.quotas.services import lift_cap, set_cap
from clavier.runs.models import Run
from clavier.runs.services import stop_run
from clavier.runs.waiting import explain
from runner.contract.run_spec import Resources
from tests.engine import assert_consistent, make_engine
from tests.worlds import make_dataset

pytestmark = pytest.mark.django_db


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    made = make_engine(monkeypatch)
    made.will(runs_for_s=None)
    return made


def test_a_cap_set_while_runs_are_going_counts_them(engine, alice, charlie):
    first, _, other = (engine.submit(actor) for actor in (alice, alice, charlie))
    engine.step()
    row = set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=200)
    assert row.used == 200, "two runs of Alice; the one of Charlie is not hers"
    set_cap(scope="user", scope_id=alice.user_id, resource="running_runs", cap=10)
    assert Usage.objects.get(scope="user").used == 2
    waiting = engine.submit(alice)
    engine.step()
    assert Run.objects.get(pk=waiting.pk).state == "PENDING"
    stop_run(run=Run.objects.get(pk=first.pk), actor_name="alice")
    engine.step(3)
    assert Run.objects.get(pk=waiting.pk).state != "PENDING"
    assert Run.objects.get(pk=other.pk).state == "RUNNING"
    assert_consistent()


def test_a_lifted_cap_is_gone_and_the_runs_it_counted_end_well(engine, alice):
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs", cap=1)
    run, waiting = engine.submit(alice), engine.submit(alice)
    engine.step()
    lift_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs")
    lift_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs")
    engine.step()
    assert Run.objects.get(pk=waiting.pk).state != "PENDING"
    stop_run(run=Run.objects.get(pk=run.pk), actor_name="alice")
    engine.step(3)
    assert_consistent()


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"valid_from": timedelta(days=1)}, "Your quota is valid from"),
        ({"valid_until": -timedelta(days=1)}, "Your quota ended at"),
        ({"valid_from": -timedelta(days=1), "valid_until": timedelta(days=1)}, ""),
    ],
)
def test_outside_the_window_of_a_quota_no_run_starts_and_running_ones_go_on(engine, alice, window, words):
    running = engine.submit(alice)
    engine.step(2)
    times = {name: timezone.now() + offset for name, offset in window.items()}
    QuotaWindow.objects.create(scope="user", scope_id=alice.user_id, **times)
    run = engine.submit(alice)
    engine.step(2)
    run.refresh_from_db()
    assert run.state == ("PENDING" if words else "RUNNING")
    assert explain(run).why.startswith(words)
    assert Run.objects.get(pk=running.pk).state == "RUNNING"


def test_drift_of_caps_is_told_and_repaired_only_by_hand(engine, alice):
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=1000)
    engine.submit(alice, resources=Resources(cpu_milli=300, memory_mib=64))
    engine.step()
    Usage.objects.filter(scope="tenant").update(used=F("used") + 500)
    (told,) = audit_usage()
    assert told.endswith("800/1000 but open reservations sum to 300")
    assert Usage.objects.get(scope="tenant").used == 800, "telling changes nothing"
    assert repair_usage() == 1
    assert_consistent()
    assert repair_usage() == 0


def test_drift_of_storage_is_told_for_the_user_and_the_tenant(alice, spooled):
    version = make_dataset(alice, spooled)
    assert audit_storage() == []
    StorageUsage.objects.update(bytes_used=F("bytes_used") + 7)
    TenantStorage.objects.update(inodes_used=0)
    told = audit_storage()
    assert len(told) == 2
    assert f"adds up to {version.stored_bytes} bytes, {version.stored_inodes} inodes" in told[0]
    assert repair_storage() == 2
    assert audit_storage() == []


def test_a_reservation_of_nobody_is_drift_too(engine, alice):
    row = set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=1000)
    Reservation.objects.create(attempt_id=uuid4(), usage=row, amount=100)
    assert len(audit_usage()) == 1
