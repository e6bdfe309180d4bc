"""The page of resources: limits, groups and GPUs, and what the tenant's own runs hold."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from clavier.core.actor import Actor
from clavier.quotas.models import Gpu, Node, QuotaWindow, ResourceGroup
from clavier.quotas.services import count_devices, set_cap
from clavier.runs.services import submit_run
from runner.contract.run_spec import Resources, RunSpec
from tests.portal.conftest import World, begin


@pytest.fixture
def gpus(node: Node) -> Node:
    """Two GPUs on the node, one of them shared, and a MIG device."""
    Gpu.objects.create(uuid="GPU-0", node=node, index=0, name="NVIDIA H100", memory_mib=81_559)
    Gpu.objects.create(uuid="GPU-1", node=node, index=1, memory_mib=81_559, allows_sharing=True)
    Gpu.objects.create(uuid="MIG-0", node=node, index=2, memory_mib=9_856, mig_profile="1g.10gb", parent_uuid="GPU-2")
    count_devices(node)
    return node


def start(actor: Actor, node: Node, name: str, **resources: Any) -> None:
    """A run of the tenant that holds something."""
    spec = RunSpec("fine_tune", None, {}, argv=("true",), resources=Resources(**resources))
    begin(submit_run(actor=actor, kind="fine_tune", name=name, subject_id=actor.user_id, spec=spec), node)


def test_alice_sees_her_limits_her_runs_and_what_is_free(alice_browser: Client, alice: Actor, gpus: Node) -> None:
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="gpus", cap=4)
    start(alice, gpus, "big-run", cpu_milli=2000, memory_mib=2048, gpus=1)
    start(alice, gpus, "small-run", cpu_milli=500, memory_mib=1024, gpu_cores_percent=30, gpu_memory_mib=10_240)
    html = alice_browser.get("/resources").content.decode()
    for words in ("big-run", "GPU 0<", "GPU 1 (30 %, 10 GiB)", "1 / 4", "NVIDIA H100", "30 %",
                  "MIG 1g.10gb", "does not enforce"):  # fmt: skip
        assert words in html, words
    assert html.count("in use</span>") == 1


def test_charlie_sees_that_a_gpu_is_in_use_and_not_by_whom(
    charlie_browser: Client, alice: Actor, gpus: Node, world: World
) -> None:
    start(alice, gpus, "secret-run", gpus=1)
    html = charlie_browser.get("/resources").content.decode()
    assert "in use</span>" in html
    for words in ("secret-run", "alice", "tune-live"):
        assert words not in html, words


def test_a_closed_group_is_not_shown_and_a_closed_window_is(alice_browser: Client, alice: Actor, node: Node) -> None:
    ResourceGroup.objects.create(name="vip-pool", is_open=False)
    ResourceGroup.objects.create(name="old-pool", is_active=False)
    QuotaWindow.objects.create(scope="user", scope_id=alice.user_id, valid_until=timezone.now() - timedelta(days=1))
    html = alice_browser.get("/resources/body").content.decode()
    assert "vip-pool" not in html
    assert "takes no new runs" in html
    assert "not valid now" in html
