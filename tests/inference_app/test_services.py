"""Services: started, brought back, stopped, deleted."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from clavier.core.errors import Conflict, Forbidden, Invalid, NotFound
from clavier.quotas.models import Node
from clavier.quotas.services import set_cap
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from inference_app.models import InferenceService, Replica
from inference_app.queries import state_of, visible_services
from inference_app.services import access_service, create_service, delete_service, start_service, stop_service
from tests.engine import assert_consistent, make_engine
from tests.worlds import make_model_version

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(runs_for_s=None)
    return made


@pytest.fixture
def service(engine, alice):
    base = make_model_version(alice)
    tuned = make_model_version(alice, "tuned", format="adapter", base_version=base)
    return create_service(actor=alice, name="helper", model_version=tuned.pk, resources={"cpu_milli": 200})


def become_ready(engine) -> None:
    engine.step()
    for run in Run.objects.filter(state="PREPARING"):
        ready = run_folder(run.pk) / "work" / "ready.json"
        ready.parent.mkdir(exist_ok=True)
        ready.write_text("{}")
    engine.step()


def state(actor) -> str:
    return state_of(visible_services(actor).get())


def test_a_service_is_ready_when_its_server_says_so_and_stops_when_asked(engine, service, alice):
    assert state(alice) == "CREATING"
    become_ready(engine)
    assert state(alice) == "READY"
    spec = Run.objects.get().run_spec()
    assert spec.parameters["adapter"]
    assert spec.parameters["server"] == "llama.cpp"
    stop_service(actor=alice, service=service)
    assert state(alice) == "STOPPING"
    engine.step(2)
    assert state(alice) == "STOPPED"
    assert_consistent()
    start_service(actor=alice, service=access_service(alice, service.pk))
    become_ready(engine)
    assert state(alice) == "READY"


def test_a_server_that_dies_comes_back_after_a_back_off(engine, service, alice):
    become_ready(engine)
    first = Replica.objects.get().run_id
    engine.executor.finish(str(Run.objects.get().attempts.get().pk), exit_code=1)
    engine.step()
    replica = Replica.objects.get()
    assert replica.run_id != first
    assert replica.restarts == 1
    assert state(alice) == "CREATING"
    Run.objects.filter(pk=replica.run_id).update(not_before=timezone.now() - timedelta(seconds=1))
    become_ready(engine)
    assert state(alice) == "READY"


def test_a_server_whose_tokens_differ_is_not_started_again(engine, service, alice):
    engine.step()
    engine.executor.finish(str(Run.objects.get().attempts.get().pk), exit_code=66)
    engine.step()
    assert Run.objects.count() == 1
    assert state(alice) == "FAILED"
    engine.will(runs_for_s=None)
    start_service(actor=alice, service=access_service(alice, service.pk))
    become_ready(engine)
    assert state(alice) == "READY"


def test_restarts_end_some_time(engine, service, alice):
    engine.will(exit_code=1)
    for _ in range(24):
        Run.objects.update(not_before=None)
        engine.step()
    assert state(alice) == "FAILED"
    assert Run.objects.count() == 9


def test_a_draft_does_not_start(engine, alice):
    create_service(actor=alice, name="draft", model_version=make_model_version(alice).pk, start=False)
    assert state(alice) == "DRAFT"
    assert not Run.objects.exists()


@pytest.mark.parametrize("name", ["Helper", "-a", "a b", "a" * 64, "", "a\n"])
def test_a_name_that_is_no_address_is_refused(engine, alice, name):
    with pytest.raises(Invalid) as refusal:
        create_service(actor=alice, name=name, model_version=make_model_version(alice).pk)
    assert refusal.value.code == "bad_name"
    assert not InferenceService.objects.exists()


def test_a_name_is_taken_once_a_tenant(engine, service, alice, charlie):
    with pytest.raises(Conflict):
        create_service(actor=alice, name="helper", model_version=make_model_version(alice).pk)
    assert create_service(actor=charlie, name="helper", model_version=make_model_version(charlie).pk)


def test_charlie_does_not_see_it_and_bob_does_not_stop_it(engine, service, bob, charlie):
    with pytest.raises(NotFound):
        access_service(charlie, service.pk)
    with pytest.raises(Forbidden):
        stop_service(actor=bob, service=access_service(bob, service.pk))


def test_a_service_is_deleted_only_when_nothing_of_it_lives(engine, service, alice):
    become_ready(engine)
    with pytest.raises(Conflict, match="stop it first"):
        delete_service(actor=alice, service=service)
    stop_service(actor=alice, service=service)
    engine.step(2)
    place = run_folder(Run.objects.get().pk)
    delete_service(actor=alice, service=access_service(alice, service.pk))
    assert not place.exists()
    assert not Run.objects.exists()


def test_a_server_that_no_node_can_take_any_more_ends_and_stays_ended(engine, service, alice):
    become_ready(engine)
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="cpu_milli", cap=100)
    engine.executor.finish(str(Run.objects.get().attempts.get().pk), exit_code=1)
    engine.step(2)
    assert (Run.objects.get().state, state(alice)) == ("FAILED", "FAILED")
    assert_consistent()
