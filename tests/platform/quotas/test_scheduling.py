"""Shares, slices and whole GPUs from submission to the devices that an executor is told of, and why others wait."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils.translation import override

from clavier.core.actor import Actor
from clavier.quotas.models import Gpu, Node
from clavier.quotas.services import count_devices, gpus_of, set_cap
from clavier.runs.models import Attempt, Run
from clavier.runs.services import stop_run
from clavier.runs.waiting import explain
from runner.contract.run_spec import Resources
from tests.engine import Engine, assert_consistent, make_engine

pytestmark = pytest.mark.django_db

SHARE = {"gpu_cores_percent": 60, "gpu_memory_mib": 20_000}
SLICE = {"mig_profile": "1g.10gb", "mig_devices": 1}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, home: object, settings: Any) -> Engine:
    """The node ``local`` without GPUs, and ``g1`` with a shared GPU and a MIG device."""
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    made = make_engine(monkeypatch)
    made.will(runs_for_s=None)
    local = Node.objects.get()
    node = Node.objects.create(name="g1", resource_group=local.resource_group, executor=local.executor)
    for resource, cap in (("cpu_milli", 64_000), ("memory_mib", 640_000)):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
    Gpu.objects.create(uuid="GPU-0", node=node, memory_mib=40_000, allows_sharing=True)
    Gpu.objects.create(uuid="MIG-0", node=node, memory_mib=9_000, mig_profile="1g.10gb", parent_uuid="GPU-1")
    count_devices(node)
    return made


def submit(engine: Engine, actor: Actor, **wanted: Any) -> Run:
    """A small run that wants something of a GPU."""
    return engine.submit(actor, resources=Resources(cpu_milli=100, memory_mib=64, **wanted))


def devices(run: Run) -> dict[int, tuple[str, ...]]:
    """What the run's live attempt holds."""
    return gpus_of(Attempt.objects.get(run=run, ended_at=None).pk)


@pytest.mark.parametrize(
    ("wanted", "uuid", "why", "in_chinese"),
    [
        (SHARE, "GPU-0", "No GPU of group default has 60 % and 19.53 GiB free for a share.", "60 %"),
        (SLICE, "MIG-0", "0 of 1 MIG device left in group default, 1 requested", "MIG 设备"),
        ({"gpus": 1}, "GPU-0", "0 of 1 GPU left in group default, 1 requested", "块 GPU"),
    ],
)
def test_a_run_gets_its_device_and_the_next_one_waits_with_the_reason(
    engine: Engine, alice: Actor, wanted: dict[str, Any], uuid: str, why: str, in_chinese: str
) -> None:
    first, second = submit(engine, alice, **wanted), submit(engine, alice, **wanted)
    engine.step(2)
    assert devices(first) == {0: (uuid,)}
    second.refresh_from_db()
    assert second.state == "PENDING"
    assert explain(second).obstacle == "room"
    assert explain(second).why == why
    with override("zh-hans"):
        assert in_chinese in explain(second).why
    stop_run(run=Run.objects.get(pk=first.pk), actor_name="alice")
    engine.step(3)
    assert devices(second) == {0: (uuid,)}
    assert_consistent()


def test_a_whole_gpu_waits_for_the_shares_of_it(engine: Engine, alice: Actor) -> None:
    share, whole = submit(engine, alice, **SHARE), submit(engine, alice, gpus=1)
    engine.step(2)
    assert devices(share) == {0: ("GPU-0",)}
    assert explain(Run.objects.get(pk=whole.pk)).why == "0 of 1 GPU left in group default, 1 requested"
    stop_run(run=Run.objects.get(pk=share.pk), actor_name="alice")
    engine.step(3)
    assert devices(whole) == {0: ("GPU-0",)}


@pytest.mark.parametrize(("cap", "starts_when"), [(1, "It starts when 1 share of a GPU more are free."), (0, "ask an")])
def test_a_cap_of_shares_is_told(engine: Engine, alice: Actor, cap: int, starts_when: str) -> None:
    set_cap(scope="user", scope_id=alice.user_id, resource="vgpus", cap=cap)
    small = {"gpu_cores_percent": 10, "gpu_memory_mib": 1000}
    runs = [submit(engine, alice, **small) for _ in range(cap + 1)]
    engine.step(2)
    told = explain(Run.objects.get(pk=runs[-1].pk))
    assert (told.obstacle, "left for you, 1 requested" in told.why) == ("user_cap", True)
    assert starts_when in told.starts_when
