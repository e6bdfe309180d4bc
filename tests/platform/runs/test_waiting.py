"""Why a run waits, its place, and what would let it start: true numbers, in two languages, no other tenant's names."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone, translation

from clavier.core.errors import Unprocessable
from clavier.quotas.models import Node, ResourceGroup, TenantShare
from clavier.quotas.services import set_cap
from clavier.runs.models import Run
from clavier.runs.waiting import explain
from runner.contract.run_spec import Resources, Role
from tests.engine import make_engine

pytestmark = pytest.mark.django_db

HALF = Resources(cpu_milli=500, memory_mib=64)


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    made = make_engine(monkeypatch)
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="cpu_milli", cap=1000)
    made.will(runs_for_s=None)
    return made


def waiting(run):
    return explain(Run.objects.get(pk=run.pk))


def test_no_room_is_told_in_numbers_with_whose_end_would_help(engine, alice, charlie):
    engine.submit(alice, resources=HALF)
    engine.submit(charlie, resources=HALF)
    engine.step(2)
    run = engine.submit(alice, resources=HALF)
    told = waiting(run)
    assert (told.obstacle, told.position) == ("room", 1)
    assert told.why == "0 of 1 CPU core left in group default, 0.5 requested"
    assert told.starts_when == "It starts when run a run or a run of another tenant ends."
    with translation.override("zh-hans"):
        assert waiting(run).why == "资源组 default 剩余 0/1 核 CPU,申请 0.5"
        assert waiting(run).starts_when == "运行 a run或其他租户的运行结束后启动。"


def test_a_run_of_another_tenant_is_never_named(engine, alice, charlie):
    secret = engine.submit(charlie, resources=Resources(cpu_milli=1000, memory_mib=64))
    Run.objects.filter(pk=secret.pk).update(name="merger with Q")
    engine.step(2)
    told = waiting(engine.submit(alice, resources=HALF))
    assert "merger" not in told.why + told.starts_when
    assert "another tenant" in told.starts_when


def test_a_share_that_may_not_be_exceeded_is_told_with_its_rest(engine, alice):
    TenantShare.objects.create(
        resource_group=ResourceGroup.objects.get(), tenant_id=alice.tenant_id, cpu_milli=600, memory_mib=1000,
        may_borrow=False,
    )  # fmt: skip
    engine.submit(alice, resources=HALF)
    engine.step(2)
    told = waiting(engine.submit(alice, resources=HALF))
    assert told.obstacle == "share"
    assert "0.1 of 0.6 CPU cores left of it, 0.5 requested" in told.why
    assert told.starts_when == "It starts when run a run ends."


def test_free_room_in_pieces_names_the_nearest_node(engine, alice, charlie):
    other = Node.objects.create(name="b", resource_group=ResourceGroup.objects.get(), executor="fake")
    for resource, cap in (("cpu_milli", 1000), ("memory_mib", 4096), ("gpus", 0)):
        set_cap(scope="node", scope_id=other.pk, resource=resource, cap=cap)
    for actor in (alice, charlie):
        engine.submit(actor, resources=Resources(cpu_milli=600, memory_mib=64))
    engine.step(2)
    told = waiting(engine.submit(alice, resources=Resources(cpu_milli=700, memory_mib=64)))
    assert told.obstacle == "room"
    assert "has 0.4 CPU cores" in told.why


def test_the_position_follows_the_order_of_admission(engine, alice, bob, charlie):
    TenantShare.objects.create(
        resource_group=ResourceGroup.objects.get(), tenant_id=charlie.tenant_id, cpu_milli=500, memory_mib=1000
    )
    engine.submit(alice, resources=Resources(cpu_milli=1000, memory_mib=64))
    engine.step(2)
    first, second = engine.submit(alice, resources=HALF), engine.submit(bob, resources=HALF, priority=3)
    nominal, urgent = engine.submit(charlie, resources=HALF), engine.submit(alice, resources=HALF, is_urgent=True)
    assert [waiting(run).position for run in (urgent, nominal, second, first)] == [1, 2, 3, 4]


def test_a_closed_node_a_later_time_and_a_coming_start_are_told(engine, alice):
    run = engine.submit(alice, resources=HALF)
    assert waiting(run).obstacle == "next_pass"
    Node.objects.update(is_schedulable=False)
    assert waiting(run).obstacle == "no_nodes"
    Run.objects.update(not_before=timezone.now() + timedelta(hours=1))
    assert waiting(run).obstacle == "not_before"
    Node.objects.update(is_schedulable=True)
    Run.objects.update(not_before=None)
    engine.step(2)
    assert (waiting(run).obstacle, waiting(run).position) == ("", None)


def test_a_gang_that_could_never_stand_together_is_refused_at_submission(engine, alice):
    with pytest.raises(Unprocessable, match="all 3 containers at once") as refusal:
        engine.submit(alice, roles=(Role("master", 1, HALF), Role("worker", 2, HALF)))
    assert (refusal.value.code, refusal.value.field) == ("unschedulable", "roles")
