"""From submission to the end, through scheduler, jobs and reconciler."""

from __future__ import annotations

import errno
import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from auditlog.models import LogEntry
from django.test import TestCase
from django.utils import timezone

from clavier.core.errors import Unprocessable
from clavier.quotas.services import set_cap
from clavier.runs import leases
from clavier.runs.admission import ask_to_leave
from clavier.runs.invariants import find_all
from clavier.runs.models import Attempt, Outbox, Run, RunEvent
from clavier.runs.outputs import run_folder
from clavier.runs.services import delete_run, stop_run
from clavier.runs.waiting import explain
from runner.contract.run_spec import Limits, Resources
from runner.executors.base import ExecutorError, Launch, Observation
from runner.worker import jobs, scheduler
from runner.worker.housekeeping import remove_abandoned
from runner.worker.reconciler import Reconciler
from tests.contract.test_trees import make_deep
from tests.engine import GOOD_OUTPUT, add_node, assert_consistent, make_engine

pytestmark = pytest.mark.django_db


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    return make_engine(monkeypatch)


def no_hook(run: Run) -> None:
    """The domain is tested elsewhere."""


def last_attempt(run: Run) -> Attempt:
    return Attempt.objects.filter(run=run).latest("number")


def test_a_good_run_goes_through_all_states_and_leaves_nothing_held(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step()
    run.refresh_from_db()
    assert run.state == "RUNNING"
    for path, text in GOOD_OUTPUT.items():
        (run_folder(run.pk) / path).parent.mkdir(exist_ok=True)
        (run_folder(run.pk) / path).write_text(text)
    engine.executor.finish(str(last_attempt(run).pk))
    engine.step()
    run.refresh_from_db()
    assert (run.state, run.end_reason) == ("COMPLETED", "COMPLETED")
    assert [event.to_state for event in RunEvent.objects.filter(run=run)] == [
        "PENDING", "PREPARING", "RUNNING", "COMPLETED",
    ]  # fmt: skip
    assert engine.executor.list() == []
    assert_consistent()


@pytest.mark.parametrize(
    ("outcome", "reason", "words"),
    [
        ({"exit_code": 0}, "NO_OUTPUT", "MANIFEST.json"),
        ({"exit_code": 0, "files": {**GOOD_OUTPUT, "output/hello.txt": "hell"}}, "BAD_OUTPUT", "4 bytes"),
        ({"exit_code": 0, "files": {"output/MANIFEST.json": '{"files": [{"path": "../spec.json", "size": 1}]}'}},
         "BAD_OUTPUT", "leaves its root"),
        ({"exit_code": 0, "files": {"output/MANIFEST.json": "[" * 100_000}}, "NO_OUTPUT", "MANIFEST.json"),
        ({"exit_code": 64, "files": {"metrics.jsonl": "[" * 100_000 + "\n"}}, "EXIT_NONZERO", "refused its input"),
        ({"exit_code": 1}, "EXIT_NONZERO", "exit code 1"),
        ({"exit_code": 64, "files": {"metrics.jsonl": '{"kind":"error","message":"row 3 is empty"}\n'}},
         "EXIT_NONZERO", "row 3 is empty"),
        ({"exit_code": 127, "cause": "command_not_found"}, "COMMAND_NOT_FOUND", "could not be executed"),
        ({"exit_code": 137, "cause": "out_of_memory", "max_memory_mib": 77}, "OUT_OF_MEMORY", "77 MiB"),
        ({"exit_code": 143, "cause": "time_limit"}, "TIME_LIMIT", "time limit"),
    ],
)  # fmt: skip
def test_what_the_program_did_wrong_fails_the_run_once_and_for_all(engine, alice, outcome, reason, words):
    engine.will(**outcome)
    run = engine.submit(alice)
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, run.end_reason) == ("FAILED", reason)
    assert words in run.message
    assert run.attempts.count() == 1
    assert_consistent()


def test_what_the_platform_did_wrong_gets_another_attempt_with_the_same_reservation(engine, alice):
    engine.will(exit_code=None, cause="lost")
    run = engine.submit(alice)
    engine.step()
    run.refresh_from_db()
    assert run.state in ("PREPARING", "RUNNING")
    assert [attempt.end_reason for attempt in run.attempts.order_by("number")] == ["EXECUTOR_LOST", ""]
    assert_consistent()
    engine.will(files=GOOD_OUTPUT)
    engine.step()
    assert last_attempt(run).observed_at is None, "the back-off has not passed"
    Attempt.objects.filter(run=run).update(not_before=timezone.now() - timedelta(seconds=1))
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "COMPLETED"
    assert_consistent()


def test_a_clock_that_is_set_back_does_not_delay_a_retry_beyond_its_back_off(engine, alice):
    engine.will(exit_code=None, cause="lost")
    run = engine.submit(alice)
    engine.step()
    engine.will(runs_for_s=None)
    retry = last_attempt(run)
    ahead = timedelta(hours=3)  # what was written then, as it looks from the clock of now
    Attempt.objects.filter(pk=retry.pk).update(created_at=retry.created_at + ahead, not_before=retry.not_before + ahead)
    engine.step()
    assert last_attempt(run).observed_at is None, "the back-off has not passed"
    engine.reconciler.due.since[retry.pk] -= 2
    engine.step(2)
    assert last_attempt(run).observed_at is not None

    waiting = engine.submit(alice)
    Run.objects.filter(pk=waiting.pk).update(not_before=timezone.now() + ahead)
    Reconciler().run_pass()
    waiting.refresh_from_db()
    assert waiting.not_before < timezone.now() + timedelta(minutes=6)


def test_the_platform_gives_up_after_its_retries(engine, alice):
    engine.will(exit_code=137)
    run = engine.submit(alice, retries=1)
    for _ in range(4):
        engine.step()
        Attempt.objects.filter(run=run).update(not_before=None, created_at=timezone.now() - timedelta(minutes=1))
    run.refresh_from_db()
    assert (run.state, run.end_reason, run.attempts.count()) == ("FAILED", "EXECUTOR_LOST", 2)
    assert_consistent()


def test_a_stop_ends_the_program_and_the_run_whatever_the_exit_code_was(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step()
    stop_run(run=Run.objects.get(pk=run.pk), actor_name="alice")
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, run.end_reason, run.message) == ("STOPPED", "STOPPED_BY_USER", "Stopped by alice.")
    assert_consistent()


def test_a_run_that_is_stopped_before_its_launch_never_starts(engine, alice):
    run = engine.submit(alice)
    (attempt_id,) = scheduler.schedule_pass()
    stop_run(run=Run.objects.get(pk=run.pk), actor_name="alice")
    jobs.launch(str(attempt_id))
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "STOPPED"
    assert engine.executor.starts(str(attempt_id)) == 0
    assert_consistent()


def test_a_launch_that_the_queue_lost_is_made_up_by_the_reconciler(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    scheduler.schedule_pass()  # and the queue forgets the launch
    Attempt.objects.filter(run=run).update(created_at=timezone.now() - timedelta(minutes=1))
    engine.reconciler.run_pass()
    engine.reconciler.run_pass()
    run.refresh_from_db()
    assert run.state == "RUNNING"


def test_the_job_that_admits_several_runs_starts_the_first_and_leaves_the_others_to_the_queue(
    engine, alice, monkeypatch
):
    started, told, was_leased = [], [], []
    start = engine.executor.start

    def watched(launch):
        was_leased.append(leases.hold(scheduler.LEASE, "another", for_s=1) is None)
        leases.give_up(scheduler.LEASE, "another")
        started.append(launch.name)
        start(launch)

    monkeypatch.setattr(engine.executor, "start", watched)
    monkeypatch.setattr(jobs.queue, "enqueue_launch", lambda attempt_id: told.append(str(attempt_id)))
    engine.will(runs_for_s=None)
    runs = [engine.submit(alice) for _ in range(3)]
    jobs.schedule()
    jobs.schedule()
    assert was_leased == [False], "it starts once the lease was given up"
    assert (len(started), len(told)) == (1, 2)
    assert sorted(started + told) == sorted(str(last_attempt(run).pk) for run in runs)


def test_a_wake_up_that_the_queue_never_heard_of_is_made_up_by_the_reconciler(engine, alice):
    run = engine.submit(alice)
    assert Outbox.objects.count() == 1
    Outbox.objects.update(created_at=timezone.now() - timedelta(seconds=5))
    engine.reconciler.run_pass()
    run.refresh_from_db()
    assert run.state == "PREPARING"
    assert Outbox.objects.count() == 0


@pytest.mark.parametrize("takes_effect", [False, True])
def test_a_start_that_fails_halfway_starts_one_program(engine, alice, takes_effect):
    engine.will(runs_for_s=None)
    engine.executor.fail("start", takes_effect=takes_effect)
    run = engine.submit(alice)
    engine.step()
    Attempt.objects.filter(run=run).update(created_at=timezone.now() - timedelta(minutes=1))
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "RUNNING"
    assert engine.executor.starts(str(last_attempt(run).pk)) == 1


def test_an_executor_that_does_not_answer_changes_nothing(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step()
    engine.executor.fail("list")
    engine.step()
    run.refresh_from_db()
    assert run.state == "RUNNING"


def test_an_attempt_is_lost_only_when_missing_twice_ten_seconds_apart(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step()
    first = last_attempt(run)
    engine.executor.finish(str(first.pk))
    engine.executor.remove(str(first.pk))
    engine.reconciler.run_pass()
    assert last_attempt(run).pk == first.pk
    Attempt.objects.filter(pk=first.pk).update(missing_since=timezone.now() - timedelta(seconds=11))
    engine.reconciler.run_pass()
    assert last_attempt(run).number == 2
    assert Attempt.objects.get(pk=first.pk).end_reason == "EXECUTOR_LOST"
    assert_consistent()


def test_a_new_reconciler_collects_what_the_old_one_started(engine, alice):
    run = engine.submit(alice)
    engine.step()
    engine.reconciler = Reconciler()
    engine.step()
    run.refresh_from_db()
    assert run.state == "COMPLETED"


def test_an_unknown_program_is_left_alone_for_its_grace_and_then_ended(engine, alice, monkeypatch):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step()
    Run.objects.filter(pk=run.pk).delete()
    engine.reconciler.run_pass()
    assert engine.executor.list()[0].state == "running"
    engine.reconciler.orphans_since = dict.fromkeys(
        engine.reconciler.orphans_since, timezone.now() - timedelta(minutes=2)
    )
    engine.reconciler.run_pass()
    engine.reconciler.run_pass()
    assert engine.executor.list() == []


def test_a_server_is_running_only_once_it_has_said_that_it_is_ready(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice, kind="replica", ready_file=True)
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "PREPARING"
    ready = run_folder(run.pk) / "work" / "ready.json"
    ready.parent.mkdir(exist_ok=True)
    ready.write_text("{}")
    engine.step()
    run.refresh_from_db()
    assert run.state == "RUNNING"


def test_runs_wait_with_the_reason_and_start_by_priority_then_age(engine, alice):
    engine.will(runs_for_s=None)
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=100)
    first, second = engine.submit(alice), engine.submit(alice)
    urgent = engine.submit(alice, priority=5)
    engine.step()
    states = {run.pk: Run.objects.get(pk=run.pk) for run in (first, second, urgent)}
    assert states[urgent.pk].state == "RUNNING"
    waiting = explain(states[first.pk])
    assert waiting.why == "0 of 0.1 CPU cores left for your tenant, 0.1 requested"
    assert waiting.starts_when == "It starts when run a run ends."
    assert (waiting.obstacle, waiting.position, explain(states[second.pk]).position) == ("tenant_cap", 1, 2)
    stop_run(run=states[urgent.pk], actor_name="alice")
    engine.step(3)
    assert Run.objects.get(pk=first.pk).state == "RUNNING"
    assert Run.objects.get(pk=second.pk).state == "PENDING"
    assert_consistent()


def test_one_tenant_at_its_limit_does_not_hold_up_another(engine, alice, charlie):
    engine.will(runs_for_s=None)
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs", cap=0)
    waiting, other = engine.submit(alice), engine.submit(charlie)
    engine.step()
    assert Run.objects.get(pk=waiting.pk).state == "PENDING"
    assert Run.objects.get(pk=other.pk).state == "RUNNING"


def test_what_can_never_run_is_refused_at_submission(engine, alice):
    with pytest.raises(Unprocessable, match="64 requested") as refusal:
        engine.submit(alice, resources=Resources(gpus=64), limits=Limits())
    assert refusal.value.code == "unschedulable"
    assert Run.objects.count() == 0


def test_a_run_that_begins_and_ends_during_a_pass_is_collected_by_the_next(engine, alice, monkeypatch):
    listings = engine.reconciler.listings
    rows_were_read = listings.ask

    def start_one_then_list(executors):
        for attempt_id in scheduler.schedule_pass():
            jobs.launch(str(attempt_id))
        return rows_were_read(executors)

    run = engine.submit(alice)
    monkeypatch.setattr(listings, "ask", start_one_then_list)
    engine.reconciler.run_pass()
    engine.reconciler.run_pass()
    run.refresh_from_db()
    assert (run.state, run.attempts.count()) == ("COMPLETED", 1)
    assert_consistent()


def test_the_end_of_an_attempt_is_kept_until_it_could_be_written_down(engine, alice, monkeypatch):
    run = engine.submit(alice)
    with monkeypatch.context() as faster:
        faster.setattr("runner.worker.reconciler.finish_attempt", lambda **facts: False)
        engine.step(2)
        assert len(engine.executor.list()) == 1
    engine.step()
    run.refresh_from_db()
    assert (run.state, engine.executor.list()) == ("COMPLETED", [])


def leave_odd_name(output: Path) -> None:
    (output / os.fsdecode(b"\xb1\xa8\xb8\xe6.txt")).write_text("GBK")


def leave_deep_folder(output: Path) -> None:
    make_deep(output, 3000)


@pytest.mark.parametrize(
    ("leave", "words"), [(leave_odd_name, "no UTF-8"), (leave_deep_folder, "nested too deeply at d/d/d")]
)
def test_output_that_can_not_be_read_ends_the_run_all_the_same_and_goes_with_it(engine, alice, leave, words):
    engine.will(runs_for_s=None)
    run = engine.submit(alice, program=None, argv=("true",))
    engine.step()
    output = run_folder(run.pk) / "output"
    output.mkdir(exist_ok=True)
    leave(output)
    engine.executor.finish(str(last_attempt(run).pk))
    engine.step()
    run.refresh_from_db()
    assert (run.state, run.end_reason) == ("FAILED", "BAD_OUTPUT")
    assert words in run.message
    assert find_all() == []
    assert remove_abandoned() == []
    assert_consistent()
    with TestCase.captureOnCommitCallbacks(execute=True):
        delete_run(run=run)
    assert not output.parent.exists()


def test_a_run_that_is_asked_to_leave_while_its_folder_is_laid_out_never_starts(engine, alice, monkeypatch):
    run = engine.submit(alice)
    (attempt_id,) = scheduler.schedule_pass()
    prepare = jobs.prepare_folder

    def slowly(preparing: Run) -> None:
        prepare(preparing)
        ask_to_leave(run_id=run.pk, claimant_id=run.pk)
        engine.reconciler.run_pass()

    monkeypatch.setattr(jobs, "prepare_folder", slowly)
    jobs.launch(str(attempt_id))
    assert engine.executor.starts(str(attempt_id)) == 0
    engine.reconciler.run_pass()
    assert Attempt.objects.get(pk=attempt_id).end_reason == "PREEMPTED"
    assert_consistent()


def test_a_launch_that_was_held_up_until_after_the_end_of_its_attempt_starts_nothing(engine, alice, monkeypatch):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    (attempt_id,) = scheduler.schedule_pass()
    start = engine.executor.start

    def held_up(launch: Launch) -> None:
        stop_run(run=Run.objects.get(pk=run.pk), actor_name="alice")
        for _ in range(2):
            engine.reconciler.run_pass()
        assert Run.objects.get(pk=run.pk).state == "STOPPED"
        start(launch)

    monkeypatch.setattr(engine.executor, "start", held_up)
    jobs.launch(str(attempt_id))
    assert engine.executor.starts(str(attempt_id)) == 0
    engine.step()
    assert engine.executor.list() == []
    assert_consistent()


def test_what_can_not_be_started_for_ten_minutes_is_tried_elsewhere_and_fails_in_the_end(engine, alice, monkeypatch):
    def broken(launch: Launch) -> None:
        raise ExecutorError("500 Server Error: no space left on device")

    monkeypatch.setattr(engine.executor, "start", broken)
    other = add_node("other", url="tcp://other", cpu_milli=1000)
    run = engine.submit(alice, retries=1, node_names=("local", "other"))
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, last_attempt(run).given_up_reason) == ("PREPARING", "")
    started = []
    for _ in range(2):
        long_ago = timezone.now() - timedelta(minutes=11)
        Attempt.objects.filter(run=run, ended_at=None).update(launch_failing_since=long_ago, not_before=long_ago)
        started.append(last_attempt(run).node.name)
        engine.step(3)
        assert_consistent()
    run.refresh_from_db()
    assert sorted(started) == ["local", other.name]
    assert (run.state, run.end_reason, run.attempts.count()) == ("FAILED", "INFRASTRUCTURE", 2)
    assert run.message == "It could not be started for 11 minutes: 500 Server Error: no space left on device"
    assert "attempt 2 in 2 s on " in RunEvent.objects.filter(run=run, reason="INFRASTRUCTURE").first().message


def test_a_start_that_fails_for_an_hour_and_then_works_is_not_given_up(engine, alice):
    engine.will(runs_for_s=None)
    engine.executor.fail("start")
    run = engine.submit(alice)
    engine.step()
    Attempt.objects.update(
        launch_failing_since=timezone.now() - timedelta(hours=1), created_at=timezone.now() - timedelta(hours=1)
    )
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, last_attempt(run).launch_failing_since) == ("RUNNING", None)


def broken_disk(run: Run) -> None:
    if run.state == "COMPLETED" or run.name == "never":
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("name", ["sometimes", "never"])
def test_what_a_run_made_and_nobody_can_take_over_fails_it_after_a_time_in_words(engine, alice, settings, name):
    broken = "tests.runner.worker.test_engine.broken_disk"
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, broken)
    run = engine.submit(alice)
    Run.objects.filter(pk=run.pk).update(name=name)
    engine.step(3)
    run.refresh_from_db()
    assert not run.is_final
    assert last_attempt(run).end_failing_since is not None
    assert len(engine.executor.list()) == 1
    Attempt.objects.update(end_failing_since=timezone.now() - timedelta(minutes=31))
    engine.step()
    run.refresh_from_db()
    assert (run.state, run.end_reason, run.attempts.count()) == ("FAILED", "INFRASTRUCTURE", 1)
    assert "OSError: [Errno 5] Input/output error" in run.message
    assert str(run_folder(run.pk)) in RunEvent.objects.filter(run=run).last().message
    assert LogEntry.objects.filter(object_pk=str(run.pk), additional_data__event="end_not_recorded").count() == 1
    assert engine.executor.list() == []
    assert_consistent()


def test_a_late_answer_from_before_the_launch_ends_no_run_that_was_stopped_since(engine, alice, monkeypatch):
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    (attempt_id,) = scheduler.schedule_pass()
    answers, look = threading.Event(), engine.executor.list

    def slowly() -> list[Observation]:
        seen = look()
        answers.wait(30)
        return seen

    monkeypatch.setattr("runner.worker.listing.Listings.ask.__defaults__", (0.1,))
    monkeypatch.setattr(engine.executor, "list", slowly)
    engine.reconciler.run_pass()
    jobs.launch(str(attempt_id))
    stop_run(run=Run.objects.get(pk=run.pk), actor_name="alice")
    monkeypatch.setattr(engine.executor, "list", look)
    answers.set()
    for question in list(engine.reconciler.listings._open.values()):
        question.join()
    engine.reconciler.run_pass()
    run.refresh_from_db()
    assert (run.state, [seen.state for seen in look()]) == ("STOPPING", ["exited"])
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, look()) == ("STOPPED", [])
    assert_consistent()
