"""The only door to a run's state, and the trigger behind it."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, transaction

from clavier.runs.models import Run, RunEvent
from clavier.runs.services import stop_run, transition
from clavier.runs.states import EDGES, FINAL_STATE_OF, FINAL_STATES, REQUEUED_REASONS, EndReason, RunState
from tests.engine import assert_consistent, make_engine

pytestmark = pytest.mark.django_db


@pytest.fixture
def engine(monkeypatch, home):
    return make_engine(monkeypatch)


def test_every_edge_of_the_table_is_taken_and_every_other_one_is_refused_by_the_database(engine, alice):
    for source in RunState:
        for target in RunState:
            run = engine.submit(alice)
            with transaction.atomic():
                Run.objects.filter(pk=run.pk).delete()
                Run.objects.bulk_create([run_in_state(run, source)])
            change = Run.objects.filter(pk=run.pk)
            if source == target or target in EDGES[source]:
                assert change.update(state=target) == 1
            else:
                with pytest.raises(DatabaseError, match="illegal change"), transaction.atomic():
                    change.update(state=target)


def run_in_state(run: Run, state: RunState) -> Run:
    run.state = state
    return run


def test_final_states_have_no_way_out_and_every_reason_leads_to_one():
    assert {RunState.COMPLETED, RunState.FAILED, RunState.STOPPED} == FINAL_STATES
    assert set(FINAL_STATE_OF) == set(EndReason) - REQUEUED_REASONS
    assert set(FINAL_STATE_OF.values()) == FINAL_STATES


def test_the_second_of_two_who_read_the_same_run_is_told_that_someone_was_faster(engine, alice):
    run = engine.submit(alice)
    other = Run.objects.get(pk=run.pk)
    assert transition(run, RunState.PREPARING)
    assert not transition(other, RunState.PREPARING)
    assert [event.to_state for event in RunEvent.objects.filter(run=run)] == ["PENDING", "PREPARING"]


def test_an_edge_that_is_none_is_an_error_of_the_programmer(engine, alice):
    run = engine.submit(alice)
    with pytest.raises(ValueError, match="no edge PENDING -> COMPLETED"):
        transition(run, RunState.COMPLETED)


def test_a_pending_run_is_stopped_at_once(engine, alice):
    run = stop_run(run=engine.submit(alice), actor_name="alice")
    assert (run.state, run.end_reason) == ("STOPPED", "STOPPED_BY_USER")
    assert_consistent()


def test_a_state_that_fails_in_its_hook_is_not_reached(engine, alice, settings):
    settings.RUN_FINISHED_HOOKS = {"fine_tune": "tests.platform.runs.test_transition.failing_hook"}
    run = engine.submit(alice)
    with pytest.raises(RuntimeError):
        stop_run(run=run, actor_name="alice")
    run.refresh_from_db()
    assert run.state == "PENDING"
    assert_consistent()


def failing_hook(run: Run) -> None:
    raise RuntimeError("the domain could not take it in")
