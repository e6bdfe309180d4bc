"""Runs of several containers: started all at once or not at all, ended together."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from clavier.quotas.models import Node
from clavier.quotas.services import set_cap
from clavier.runs.models import Attempt, Peer, Run
from clavier.runs.services import stop_run
from runner.contract.run_spec import Resources, Role
from runner.executors.base import Launch, LaunchRefused
from runner.executors.fake import FakeExecutor, Outcome
from runner.worker import engines, hands, jobs, reconciler, scheduler
from runner.worker.engines import Engine
from tests.engine import GOOD_OUTPUT, add_node, assert_consistent, make_engine

pytestmark = pytest.mark.django_db

SMALL = Resources(cpu_milli=100, memory_mib=64)
THREE = (Role("master", 1, SMALL), Role("worker", 2, SMALL))


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    made = make_engine(monkeypatch)
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="cpu_milli", cap=1000)
    return made


def names_of(run: Run) -> list[str]:
    attempt = Attempt.objects.filter(run=run).latest("number")
    return [str(attempt.pk), f"{attempt.pk}.1", f"{attempt.pk}.2"]


def test_all_ranks_start_with_one_meeting_point_and_end_in_one_completed_run(engine, alice, monkeypatch):
    engine.will(runs_for_s=None)
    started = []
    start = engine.executor.start
    monkeypatch.setattr(engine.executor, "start", lambda launch: (started.append(launch), start(launch)))
    run = engine.submit(alice, roles=THREE)
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "RUNNING"
    launches = {launch.name: launch for launch in started}
    assert sorted(launches) == names_of(run)
    gangs = [launches[name].gang for name in names_of(run)]
    assert [(gang.rank, gang.size, gang.master_address) for gang in gangs] == [(n, 3, "127.0.0.1") for n in range(3)]
    assert len({(gang.network, gang.master_port) for gang in gangs}) == 1
    assert list(Peer.objects.values_list("rank", flat=True)) == [1, 2]
    for name in names_of(run)[:2]:
        engine.executor.finish(name)
    engine.step()
    run.refresh_from_db()
    assert run.state == "RUNNING", "one rank still works"
    make_output(run)
    engine.executor.finish(names_of(run)[2])
    engine.step()
    run.refresh_from_db()
    assert (run.state, engine.executor.list()) == ("COMPLETED", [])
    assert_consistent()


def make_output(run: Run) -> None:
    from clavier.runs.outputs import run_folder

    for path, text in GOOD_OUTPUT.items():
        (run_folder(run.pk) / path).parent.mkdir(exist_ok=True)
        (run_folder(run.pk) / path).write_text(text)


def test_a_rank_that_fails_ends_the_others_and_its_words_are_the_verdict(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice, roles=THREE)
    engine.step(2)
    engine.executor.finish(names_of(run)[1], exit_code=3)
    engine.step()
    assert [seen.state for seen in engine.executor.list()] == ["exited"] * 3
    engine.step()
    run.refresh_from_db()
    assert (run.state, run.end_reason) == ("FAILED", "EXIT_NONZERO")
    assert run.message.startswith("Rank 1: The program ended with exit code 3")
    assert engine.executor.list() == []
    assert_consistent()


def test_a_rank_that_is_lost_makes_the_whole_gang_start_again(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice, roles=THREE)
    engine.step(2)
    first = names_of(run)
    engine.executor.finish(first[2], exit_code=None, cause="lost")
    engine.executor.finish(first[1], exit_code=1)  # it could not reach its peer any more
    engine.step(2)
    assert names_of(run)[0] != first[0]
    assert Attempt.objects.get(pk=first[0]).end_reason == "EXECUTOR_LOST"
    Attempt.objects.update(not_before=None, created_at=timezone.now() - timedelta(minutes=1))
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "RUNNING"
    assert len([seen for seen in engine.executor.list() if seen.state == "running"]) == 3
    assert_consistent()


def test_a_rank_that_vanished_is_concluded_only_after_ten_seconds_and_takes_the_others_along(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice, roles=THREE)
    engine.step(2)
    first = names_of(run)
    engine.executor.finish(first[1])
    engine.executor.remove(first[1])
    engine.step(2)
    assert {seen.state for seen in engine.executor.list()} == {"running"}
    Attempt.objects.update(missing_since=timezone.now() - timedelta(seconds=11))
    engine.step(2)
    assert names_of(run)[0] != first[0]
    assert_consistent()


def test_a_gang_that_started_by_halves_is_completed_and_not_started_twice(engine, alice):
    engine.will(runs_for_s=None)
    engine.executor.fail("start", on_call=2)
    run = engine.submit(alice, roles=THREE)
    engine.step()
    assert len(engine.executor.list()) == 1
    Attempt.objects.update(created_at=timezone.now() - timedelta(minutes=1))
    engine.step(2)
    run.refresh_from_db()
    assert run.state == "RUNNING"
    assert [engine.executor.starts(name) for name in names_of(run)] == [1, 1, 1]


def test_a_gang_whose_second_rank_is_refused_holds_what_it_has_until_the_first_is_gone(engine, alice, monkeypatch):
    engine.executor.will(outcome=Outcome(runs_for_s=None, ignores_term=True))
    start = engine.executor.start

    def refuse_the_second(launch: Launch) -> None:
        if launch.rank == 1:
            raise LaunchRefused("Mount /models/m does not exist on this host.")
        start(launch)

    monkeypatch.setattr(engine.executor, "start", refuse_the_second)
    run = engine.submit(alice, roles=THREE)
    engine.step(3)
    run.refresh_from_db()
    assert (run.state, [seen.state for seen in engine.executor.list()]) == ("PREPARING", ["running"])
    assert_consistent()
    engine.clock.now += 60  # the grace of the first
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, run.end_reason) == ("FAILED", "INVALID_SPEC")
    assert run.message == "Mount /models/m does not exist on this host."
    assert engine.executor.list() == []
    assert_consistent()


def test_a_stop_reaches_every_rank(engine, alice):
    engine.will(runs_for_s=None)
    run = engine.submit(alice, roles=THREE)
    engine.step(2)
    stop_run(run=Run.objects.get(pk=run.pk), actor_name="alice")
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, engine.executor.list()) == ("STOPPED", [])
    assert_consistent()


def test_a_gang_waits_whole_until_there_is_room_for_all_of_it(engine, alice):
    engine.will(runs_for_s=None)
    engine.submit(alice, resources=Resources(cpu_milli=800, memory_mib=64))
    run = engine.submit(alice, roles=THREE)
    engine.step(2)
    run.refresh_from_db()
    assert (run.state, run.attempts.count()) == ("PENDING", 0)
    assert_consistent()


def test_ranks_stay_on_one_engine_unless_engines_share_a_network(engine, alice):
    Node.objects.filter(name="local").update(is_schedulable=False)
    add_node("a", "docker_engine", "unix:///a.sock")
    add_node("b", "docker_engine", "unix:///b.sock")
    run = engine.submit(alice, roles=THREE)
    scheduler.schedule_pass()
    assert not Attempt.objects.exists()
    Node.objects.filter(name__in=("a", "b")).update(engine_network="fabric")
    (attempt_id,) = scheduler.schedule_pass()
    attempt = Attempt.objects.get(run=run, pk=attempt_id)
    nodes = [attempt.node, *(peer.node for peer in attempt.peers.all())]
    assert sorted(node.name for node in nodes) in (["a", "a", "b"], ["a", "b", "b"])
    gangs = [jobs.gang_of(attempt, rank, nodes) for rank in range(3)]
    assert {(gang.network, gang.master_address) for gang in gangs} == {("fabric", f"rank-0-{attempt.pk.hex}")}


def test_an_engine_that_hangs_concludes_nothing_of_its_own_and_delays_nobody_else(engine, alice, monkeypatch):
    import threading

    engine.will(runs_for_s=None)
    add_node("far", url="tcp://far", cpu_milli=1000)
    far = FakeExecutor(clock=engine.clock)
    far.will(outcome=Outcome(runs_for_s=None))
    by_engine = {Engine("local_process"): engine.executor, Engine("local_process", "tcp://far"): far}
    for module in (engines, jobs, reconciler, hands):
        monkeypatch.setattr(module, "executor", by_engine.__getitem__)
    monkeypatch.setattr("runner.worker.listing.Listings.ask.__defaults__", (0.3,))
    here, there = engine.submit(alice, node_names=("local",)), engine.submit(alice, node_names=("far",))
    engine.step(2)
    answers = threading.Event()
    monkeypatch.setattr(far, "list", lambda: (answers.wait(30), [])[1])
    engine.executor.finish(names_of(here)[0], exit_code=1)
    engine.step()
    here.refresh_from_db()
    there.refresh_from_db()
    assert (here.state, there.state) == ("FAILED", "RUNNING")
    began = timezone.now()
    engine.step(3)
    assert timezone.now() - began < timedelta(seconds=5)
    answers.set()
    there.refresh_from_db()
    assert there.state == "RUNNING"
