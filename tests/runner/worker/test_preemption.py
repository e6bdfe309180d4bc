"""What was borrowed is wanted back: once, gracefully, only from runs that can go on, and never for nothing."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from django.utils import timezone

from clavier.quotas.models import Node, ResourceGroup, TenantShare
from clavier.quotas.services import set_cap
from clavier.runs.leases import LeaseLost, hold
from clavier.runs.models import Attempt, Lease, Outbox, Run, RunEvent
from clavier.runs.outputs import run_folder
from clavier.runs.services import stop_run
from clavier.runs.waiting import explain
from runner.contract.run_spec import Resources
from runner.worker import jobs, scheduler
from tests.engine import GOOD_OUTPUT, assert_consistent, make_engine

pytestmark = pytest.mark.django_db

HALF = Resources(cpu_milli=500, memory_mib=64)


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    made = make_engine(monkeypatch)
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="cpu_milli", cap=1000)
    made.will(runs_for_s=None)
    return made


def share(actor, cpu_milli, **rest):
    TenantShare.objects.create(
        resource_group=ResourceGroup.objects.get(), tenant_id=actor.tenant_id, cpu_milli=cpu_milli,
        memory_mib=10_000, **rest,
    )  # fmt: skip


def state(run):
    return Run.objects.get(pk=run.pk).state


def test_a_borrower_makes_room_waits_again_and_goes_on_with_a_new_attempt_in_the_same_folder(engine, alice, charlie):
    share(alice, 1000)
    borrowed = [engine.submit(charlie, resources=HALF, preemptible=True) for _ in range(2)]
    engine.step(2)
    assert [state(run) for run in borrowed] == ["RUNNING", "RUNNING"]
    mine = engine.submit(alice, resources=HALF)
    engine.step(3)
    assert state(mine) == "RUNNING"
    assert sorted(state(run) for run in borrowed) == ["PENDING", "RUNNING"]
    (gone,) = Attempt.objects.filter(end_reason="PREEMPTED")
    run = gone.run
    assert run.preempted_at is not None
    assert [event.to_state for event in RunEvent.objects.filter(run=run)] == [
        "PENDING", "PREPARING", "RUNNING", "", "PENDING",
    ]  # fmt: skip
    assert explain(run).position == 1
    assert_consistent()
    stop_run(run=Run.objects.get(pk=mine.pk), actor_name="alice")
    engine.step(4)
    assert state(run) == "RUNNING"
    assert run.attempts.count() == 2
    assert_consistent()


def test_runs_that_can_not_go_on_and_those_within_their_share_are_left_alone(engine, alice, charlie):
    share(alice, 1000)
    stays = engine.submit(charlie, resources=HALF, preemptible=False)
    share(charlie, 500)
    engine.submit(charlie, resources=HALF, preemptible=True)
    engine.step(2)
    Run.objects.filter(pk=stays.pk).update(preemptible=True)
    TenantShare.objects.filter(tenant_id=charlie.tenant_id).update(cpu_milli=1000)
    mine = engine.submit(alice, resources=HALF)
    engine.step(3)
    assert state(mine) == "PENDING"
    assert not Attempt.objects.filter(leave_asked_at__isnull=False).exists()


def test_who_made_room_is_not_asked_again_within_the_cool_off(engine, alice, charlie):
    share(alice, 500)
    engine.submit(charlie, resources=Resources(cpu_milli=1000, memory_mib=64), preemptible=True)
    engine.step(2)
    Run.objects.update(preempted_at=timezone.now() - timedelta(minutes=5))
    mine = engine.submit(alice, resources=HALF)
    engine.step(3)
    assert state(mine) == "PENDING"
    Run.objects.filter(tenant_id=charlie.tenant_id).update(preempted_at=timezone.now() - timedelta(minutes=31))
    engine.step(3)
    assert state(mine) == "RUNNING"


def test_who_sealed_no_checkpoint_when_it_made_room_is_not_asked_again_until_it_has(engine, alice, charlie):
    share(alice, 500)
    run = engine.submit(charlie, resources=Resources(cpu_milli=1000, memory_mib=64), preemptible=True)
    engine.step(2)
    first = engine.submit(alice, resources=HALF)
    engine.step(3)
    stop_run(run=Run.objects.get(pk=first.pk), actor_name="alice")
    engine.step(4)
    assert (state(run), run.attempts.filter(end_reason="PREEMPTED").count()) == ("RUNNING", 1)
    Run.objects.filter(pk=run.pk).update(preempted_at=timezone.now() - timedelta(minutes=31))
    again = engine.submit(alice, resources=HALF)
    engine.step(3)
    assert (state(again), state(run)) == ("PENDING", "RUNNING")
    half = run_folder(run.pk) / "checkpoints" / ".tmp-step-00000010" / "MANIFEST.json"
    half.parent.mkdir(parents=True)
    half.write_text("{}")
    engine.step(3)
    assert state(again) == "PENDING", "that one is not sealed"
    sealed = half.parent.rename(half.parent.with_name("step-00000010")) / "MANIFEST.json"
    before = Attempt.objects.get(end_reason="PREEMPTED").started_at.timestamp() - 1
    os.utime(sealed, (before, before))
    engine.step(3)
    assert state(again) == "PENDING", "that one is older than what was lost"
    sealed.touch()
    engine.step(3)
    assert (state(again), state(run)) == ("RUNNING", "PENDING")
    assert_consistent()


def test_the_room_that_is_being_made_is_kept_for_who_asked(engine, alice, charlie):
    share(alice, 1000)
    engine.submit(charlie, resources=Resources(cpu_milli=900, memory_mib=64), preemptible=True)
    engine.step(2)
    engine.executor.will(outcome=None)
    engine.submit(alice, resources=Resources(cpu_milli=1000, memory_mib=64))
    scheduler.schedule_pass()
    small = engine.submit(charlie, resources=Resources(cpu_milli=100, memory_mib=64))
    scheduler.schedule_pass()
    assert state(small) == "PENDING"
    assert Attempt.objects.filter(leave_asked_at__isnull=False).count() == 1


def test_a_run_that_ends_well_while_it_was_asked_to_leave_is_completed(engine, alice, charlie):
    share(alice, 1000)
    engine.will(runs_for_s=100, files=GOOD_OUTPUT)
    run = engine.submit(charlie, resources=Resources(cpu_milli=1000, memory_mib=64), preemptible=True)
    engine.step(2)
    engine.submit(alice, resources=HALF)
    scheduler.schedule_pass()
    engine.clock.now += 101
    engine.step()
    assert state(run) == "COMPLETED"
    assert_consistent()


def test_after_a_failure_of_the_platform_a_run_leaves_a_node_that_takes_no_runs(engine, alice):
    run = engine.submit(alice, resources=HALF)
    engine.step(2)
    Node.objects.update(is_schedulable=False)
    engine.executor.finish(str(run.attempts.get().pk), exit_code=None, cause="lost")
    engine.step()
    run.refresh_from_db()
    assert (run.state, run.not_before > timezone.now()) == ("PENDING", True)
    assert "another one" in RunEvent.objects.filter(run=run).latest("pk").message
    assert_consistent()
    Run.objects.update(not_before=None)
    assert explain(Run.objects.get(pk=run.pk)).obstacle == "no_nodes"
    Node.objects.update(is_schedulable=True)
    engine.step(2)
    assert (state(run), run.attempts.count()) == ("RUNNING", 2)


def test_a_former_leader_writes_nothing_more(engine, alice):
    run = engine.submit(alice, resources=HALF)
    engine.step(2)
    fence = hold("reconciler", "old", for_s=10)
    engine.executor.finish(str(run.attempts.get().pk), exit_code=1)
    Lease.objects.filter(name="reconciler").update(expires_at=timezone.now() - timedelta(seconds=1))
    assert hold("reconciler", "new", for_s=10).epoch == fence.epoch + 1
    with pytest.raises(LeaseLost):
        engine.reconciler.run_pass(fence)
    assert state(run) == "RUNNING"
    engine.reconciler.run_pass(hold("reconciler", "new", for_s=10))
    assert state(run) == "FAILED"


def test_wake_ups_that_come_during_a_pass_are_seen_by_it_and_their_jobs_do_nothing(engine, alice, monkeypatch):
    first = engine.submit(alice)
    passes = []
    monkeypatch.setattr(scheduler, "read_world", lambda read=scheduler.read_world: (passes.append(1), read())[1])
    wake_up = str(Outbox.objects.get().pk)
    jobs.schedule(wake_up)
    assert state(first) == "PREPARING"
    jobs.schedule(wake_up)
    assert passes == [1], "the wake-up was seen by the first pass"
