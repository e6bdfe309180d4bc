"""What the database chooses for a pass leads to the plan that all waiting runs lead to; and the pass carries it out."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from clavier.quotas.models import Node, QuotaWindow, ResourceGroup, TenantShare
from clavier.quotas.services import audit_usage, set_cap
from clavier.runs.demand import scheduling_columns
from clavier.runs.leases import hold
from clavier.runs.models import Attempt, Run
from clavier.runs.planner import plan
from clavier.runs.selection import candidate_of, largest_gaps
from clavier.runs.world import read_allowances, read_candidates, read_world
from runner.contract.run_spec import Resources, Role, RunSpec
from runner.worker import scheduler
from tests.engine import make_engine

pytestmark = pytest.mark.django_db


@pytest.fixture
def engine(monkeypatch, home, settings):
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    return make_engine(monkeypatch)


def add_node(name, group, cpu_milli, memory_mib=8000, gpus=0):
    node = Node.objects.create(name=name, resource_group=group, executor="fake")
    for resource, cap in (("cpu_milli", cpu_milli), ("memory_mib", memory_mib), ("gpus", gpus)):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
    return node


def waiting(actor, chance, **changes):
    resources = Resources(cpu_milli=chance.choice((500, 1000, 2000)), memory_mib=chance.choice((500, 1000)))
    roles = (Role("master", 1, resources), Role("worker", chance.choice((1, 2)), resources))
    spec = RunSpec(
        kind="fine_tune", program=None, argv=("/bin/true",), parameters={}, resources=resources,
        roles=roles if chance.random() < 0.2 else (), is_urgent=chance.random() < 0.2,
        priority=chance.choice((0, 0, 5)), node_names=("b",) if chance.random() < 0.1 else (), **changes,
    )  # fmt: skip
    old = timezone.now() - timedelta(minutes=chance.choice((1, 30)))
    return Run(
        tenant_id=actor.tenant_id, created_by_id=actor.user_id, kind="fine_tune", name="a run", subject_id=uuid4(),
        spec=spec.to_json(), spec_digest=spec.digest(), priority=spec.priority, queued_at=old,
        **scheduling_columns(spec),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("first", "each"), [(1, None), (3, None), (200, None), (200, 1), (5, 2)])
def test_a_pass_over_few_runs_admits_what_a_plan_over_all_of_them_would(engine, alice, bob, charlie, seed, first, each):
    chance = random.Random(seed)
    group = ResourceGroup.objects.get()
    Node.objects.filter(name="local").update(is_schedulable=False)
    for name in "abc":
        add_node(name, group, chance.choice((1000, 3000, 4500)))
    if chance.random() < 0.7:
        TenantShare.objects.create(
            resource_group=group, tenant_id=alice.tenant_id, cpu_milli=2000, memory_mib=2000,
            may_borrow=chance.random() < 0.5,
        )  # fmt: skip
    if chance.random() < 0.5:
        set_cap(scope="user", scope_id=bob.user_id, resource="running_runs", cap=1)
        set_cap(scope="tenant", scope_id=charlie.tenant_id, resource="cpu_milli", cap=2500)
    Run.objects.bulk_create(waiting(chance.choice((alice, bob, charlie)), chance) for _ in range(40))
    world = read_world()
    everyone = [candidate_of(run) for run in Run.objects.all()]
    expected = plan(everyone, world.groups, read_allowances(everyone)).admissions
    scheduler_pass(first, each)
    begun = Attempt.objects.values_list("run_id", "node_id")
    assert {run for run, _ in begun} == {admission.run for admission in expected}
    assert dict(begun) == {admission.run: admission.nodes[0] for admission in expected}
    assert audit_usage() == []


def scheduler_pass(first, each):
    """A pass that reads so few runs at once, and so few of one tenant."""
    fence = hold(scheduler.LEASE, "test", for_s=30)
    for _ in range(100):
        made, is_all = scheduler.plan_round(read_world(), first, each, ())
        scheduler.carry_out(made, fence, lambda _: None, scheduler.Refused())
        if is_all:
            break


def test_nothing_is_read_while_nothing_fits(engine, alice, django_assert_max_num_queries):
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="cpu_milli", cap=0)
    engine_runs = [waiting(alice, random.Random(1)) for _ in range(50)]
    Run.objects.bulk_create(engine_runs)
    with django_assert_max_num_queries(22):
        assert scheduler.schedule_pass() == []
    assert read_candidates(read_world()).candidates == []


def test_the_queries_of_a_pass_do_not_grow_with_the_runs(engine, alice, django_assert_max_num_queries):
    Node.objects.filter(name="local").update(is_schedulable=False)
    add_node("a", ResourceGroup.objects.get(), 100_000, 100_000)
    spec = RunSpec(kind="fine_tune", program=None, argv=("/bin/true",), parameters={},
                   resources=Resources(cpu_milli=1000, memory_mib=100))  # fmt: skip
    Run.objects.bulk_create(
        Run(tenant_id=alice.tenant_id, created_by_id=alice.user_id, kind="fine_tune", name="a run",
            subject_id=uuid4(), spec=spec.to_json(), spec_digest=spec.digest(), **scheduling_columns(spec))
        for _ in range(60)
    )  # fmt: skip
    with django_assert_max_num_queries(40):
        assert len(scheduler.schedule_pass()) == 60
    assert audit_usage() == []


def test_outside_the_window_of_its_quota_no_run_is_chosen(engine, alice, charlie):
    QuotaWindow.objects.create(scope="tenant", scope_id=alice.tenant_id, valid_until=timezone.now())
    engine.submit(alice)
    mine = engine.submit(charlie)
    assert [candidate.id for candidate in read_candidates(read_world()).candidates] == [mine.pk]


def test_a_gap_that_another_contains_is_not_asked_for():
    gaps = [(1, 1, 0), (2, 1, 0), (1, 3, 0), (0, 9, 9), (2, 1, 0), (-1, -1, -1)]
    assert largest_gaps(gaps) == [(1, 3, 0), (2, 1, 0)]
    assert largest_gaps((number, 100 - number, 0) for number in range(1, 60)) == [(59, 99, 0)]
