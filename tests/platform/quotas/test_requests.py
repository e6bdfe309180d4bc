"""What may be asked for at all, and what a resource group gives, allows and could ever hold."""

from __future__ import annotations

import pytest

from clavier.core.errors import InvalidFields, NotFound, Unprocessable
from clavier.quotas.models import Gpu, Node, ResourceGroup, ResourceGroupGrant
from clavier.quotas.queries import usable_groups
from clavier.quotas.requests import checked_resources, require_schedulable
from clavier.quotas.services import count_devices, ensure_local_node, set_cap
from runner.contract.run_spec import Resources, Role, RunSpec

pytestmark = pytest.mark.django_db


@pytest.fixture
def group(home) -> ResourceGroup:
    """Closed, with one node of 8 cores, 16 GiB, two GPUs (one shared) and one MIG device of a third."""
    made = ResourceGroup.objects.create(name="research", is_open=False)
    node = Node.objects.create(name="r1", resource_group=made, executor="fake")
    for resource, cap in (("cpu_milli", 8000), ("memory_mib", 16384)):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
    for uuid, columns in {
        "GPU-0": {"memory_mib": 80_000},
        "GPU-1": {"memory_mib": 40_000, "allows_sharing": True},
        "GPU-2": {"memory_mib": 80_000},
        "MIG-0": {"memory_mib": 9_000, "mig_profile": "1g.10gb", "parent_uuid": "GPU-2"},
    }.items():
        Gpu.objects.create(uuid=uuid, node=node, **columns)
    count_devices(node)
    return made


def spec(**changes) -> RunSpec:
    return RunSpec(**{"kind": "fine_tune", "program": None, "parameters": {}, "resource_group": "research", **changes})


def problems_of(actor, **changes) -> list[tuple[str, str]]:
    with pytest.raises(Unprocessable) as refusal:
        require_schedulable(actor=actor, spec=spec(**changes))
    return [(problem.field, problem.code) for problem in refusal.value.problems]


def test_a_closed_group_is_there_only_for_those_with_a_grant(group, alice, bob, charlie):
    ensure_local_node()
    for actor in (alice, bob, charlie):
        with pytest.raises(NotFound, match="There is no resource group 'research'"):
            require_schedulable(actor=actor, spec=spec())
        assert [found.name for found in usable_groups(actor)] == ["default"]
    ResourceGroupGrant.objects.create(resource_group=group, user_id=bob.user_id)
    require_schedulable(actor=bob, spec=spec())
    assert not usable_groups(alice).filter(pk=group.pk).exists(), "a grant to Bob alone"
    ResourceGroupGrant.objects.create(resource_group=group, tenant_id=alice.tenant_id)
    require_schedulable(actor=alice, spec=spec())
    assert [found.name for found in usable_groups(bob)] == ["default", "research"], "once, though granted twice"
    assert not usable_groups(charlie).filter(pk=group.pk).exists()


def test_a_group_that_is_switched_off_says_so(group, alice):
    ResourceGroup.objects.update(is_open=True, is_active=False)
    assert problems_of(alice) == [("resource_group", "group_inactive")]


def test_every_problem_is_told_at_once_with_its_field(group, alice):
    ResourceGroup.objects.update(is_open=True, run_limits={"cpu_milli": 4000, "gpus": 1})
    roles = (Role("master", 1, Resources(cpu_milli=5000)), Role("worker", 2, Resources(gpus=2)))
    assert problems_of(alice, roles=roles, node_names=("r1", "r9")) == [
        ("node_names", "not_found"),
        ("roles.0.resources.cpu_milli", "over_limit"),
        ("roles.1.resources.gpus", "over_limit"),
    ]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(cpu_milli=9000), "8 of 8 CPU cores left for node r1, 9 requested"),
        (Resources(gpus=3), "2 of 2 GPUs left for node r1, 3 requested"),
        (Resources(gpu_cores_percent=50, gpu_memory_mib=50_000), "0 of 0 shares of GPUs with 50 % and 50000 MiB"),
        (Resources(mig_profile="7g.80gb", mig_devices=1), "no MIG devices '7g.80gb'; it has 1g.10gb (1)"),
        (Resources(mig_profile="1g.10gb", mig_devices=2), "1 of 1 MIG devices left for node r1, 2 requested"),
    ],
)
def test_what_no_empty_node_could_hold_is_refused_in_words(group, alice, resources, words):
    ResourceGroup.objects.update(is_open=True)
    with pytest.raises(Unprocessable) as refusal:
        require_schedulable(actor=alice, spec=spec(resources=resources))
    assert words in refusal.value.message
    assert refusal.value.code == "unschedulable"


def test_what_an_empty_node_could_hold_is_accepted_however_full_it_is_now(group, alice):
    ResourceGroup.objects.update(is_open=True)
    Gpu.objects.filter(mig_profile="").update(cores_used=100)
    for resources in (
        Resources(gpus=2),
        Resources(gpu_cores_percent=100, gpu_memory_mib=40_000),
        Resources(mig_profile="1g.10gb", mig_devices=1),
    ):
        require_schedulable(actor=alice, spec=spec(resources=resources))


def test_a_request_gets_the_defaults_of_its_group(group):
    assert checked_resources({}) == {"cpu_milli": 1000, "memory_mib": 4096, "gpus": 0}
    ResourceGroup.objects.update(default_resources={"cpu_milli": 4000, "gpus": 1})
    assert checked_resources({}, resource_group="research") == {"cpu_milli": 4000, "memory_mib": 4096, "gpus": 1}
    share = {"gpu_cores_percent": 30, "gpu_memory_mib": 4000}
    assert checked_resources(share, resource_group="research") == {
        "cpu_milli": 4000, "memory_mib": 4096, "gpus": 0, **share,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"gpus": 1, "gpu_cores_percent": 10, "gpu_memory_mib": 1}, [("resources.gpu_cores_percent", "excluded")]),
        ({"gpus": 1, "mig_profile": "1g.10gb", "mig_devices": 1}, [("resources.mig_devices", "excluded")]),
        ({"gpu_cores_percent": 10}, [("resources.gpu_memory_mib", "required")]),
        ({"gpu_memory_mib": 10}, [("resources.gpu_cores_percent", "required")]),
        ({"mig_devices": 1}, [("resources.mig_profile", "required")]),
        ({"mig_profile": "1g.10gb"}, [("resources.mig_devices", "required")]),
        ({"mig_profile": 7}, [("resources.mig_profile", "bad_value")]),
        ({"gpu_cores_percent": 101, "gpu_memory_mib": 1, "gpu": 1},
         [("resources.gpu", "unknown_field"), ("resources.gpu_cores_percent", "out_of_range"),
          ("resources.gpu_cores_percent", "required")]),
        ({"gpus": True}, [("resources.gpus", "out_of_range")]),
    ],
)  # fmt: skip
def test_contradictions_and_nonsense_are_told_by_field(db, given, problems):
    with pytest.raises(InvalidFields) as refusal:
        checked_resources(given)
    assert [(problem.field, problem.code) for problem in refusal.value.problems] == problems
