"""resource-groups and quota for everybody; nodes, gpus and quotas for operators."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from clavier.accounts.models import Tenant, User
from clavier.core.actor import Actor
from clavier.files.models import StorageUsage, TenantStorage
from clavier.quotas.models import Gpu, Node, QuotaWindow, ResourceGroup, ResourceGroupGrant, Usage
from clavier.quotas.services import count_devices, ensure_local_node, set_cap
from tests.api.conftest import client_of
from tests.api.native.conftest import error_of

GROUPS, QUOTA, NODES, GPUS, QUOTAS = (f"/api/v1/{name}" for name in ("resource-groups", "quota", "nodes", "gpus",
                                                                    "quotas"))  # fmt: skip


@pytest.fixture
def gpu_group(node: None) -> ResourceGroup:
    """Closed: two whole GPUs (one shared, one in use) and a MIG device."""
    group = ResourceGroup.objects.create(
        name="gpu", is_open=False, default_resources={"gpus": 1}, run_limits={"gpus": 1}, description="H100"
    )
    machine = Node.objects.create(name="g1", resource_group=group, executor="fake")
    for resource, cap in (("cpu_milli", 8000), ("memory_mib", 16384)):
        set_cap(scope="node", scope_id=machine.pk, resource=resource, cap=cap)
    for uuid, columns in {
        "GPU-0": {"memory_mib": 80_000, "cores_used": 100, "memory_used_mib": 80_000},
        "GPU-1": {"memory_mib": 40_000, "allows_sharing": True, "cores_used": 30, "memory_used_mib": 10_000},
        "GPU-2": {"memory_mib": 80_000},
        "GPU-3": {"memory_mib": 80_000},
        "MIG-0": {"memory_mib": 9_000, "mig_profile": "1g.10gb", "parent_uuid": "GPU-2"},
    }.items():
        Gpu.objects.create(uuid=uuid, node=machine, **columns)
    count_devices(machine)
    return group


def test_a_group_shows_what_is_free_to_those_who_may_use_it(
    gpu_group: ResourceGroup, alice: Actor, alice_client: APIClient, charlie_client: APIClient
) -> None:
    ResourceGroupGrant.objects.create(resource_group=gpu_group, tenant_id=alice.tenant_id)
    items = alice_client.get(GROUPS).json()["items"]
    assert [item["name"] for item in items] == ["default", "gpu"]
    assert items[1] == {
        "name": "gpu", "description": "H100", "is_active": True, "is_open": False,
        "default_resources": {"gpus": 1}, "run_limits": {"gpus": 1}, "num_nodes": 1, "node_names": ["g1"],
        "capacity": {"cpu_milli": 8000, "memory_mib": 16384, "gpus": 3},
        "free": {"cpu_milli": 8000, "memory_mib": 16384, "gpus": 1},
        "mig": [{"profile": "1g.10gb", "total": 1, "free": 1}],
        "shares": {"gpus": 1, "largest_cores_percent": 70, "largest_memory_mib": 30_000},
    }  # fmt: skip
    assert [item["name"] for item in charlie_client.get(GROUPS).json()["items"]] == ["default"]


def test_the_list_of_groups_takes_as_many_queries_for_ten_as_for_one(
    gpu_group: ResourceGroup, alice_client: APIClient, django_assert_max_num_queries: object
) -> None:
    ResourceGroup.objects.update(is_open=True)
    for number in range(10):
        group = ResourceGroup.objects.create(name=f"g{number}")
        Node.objects.create(name=f"n{number}", resource_group=group, executor="fake")
    with django_assert_max_num_queries(8):  # type: ignore[operator]
        assert len(alice_client.get(GROUPS).json()["items"]) == 12


def test_quota_tells_what_is_left_and_when_it_is_valid(alice: Actor, alice_client: APIClient, node: None) -> None:
    assert alice_client.get(QUOTA).json()["is_init"] is True
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=500)
    set_cap(scope="user", scope_id=alice.user_id, resource="vgpus", cap=3)
    QuotaWindow.objects.create(scope="user", scope_id=alice.user_id, valid_until=datetime(2020, 1, 1, tzinfo=UTC))
    quota = alice_client.get(QUOTA).json()
    assert quota["remaining"] == {
        "running_runs": None, "cpu_milli": 500, "memory_mib": quota["remaining"]["memory_mib"], "gpus": 0, "vgpus": 0,
        "mig_devices": 0,
    }  # fmt: skip
    Gpu.objects.create(uuid="GPU-0", node=Node.objects.get(), memory_mib=40_000, allows_sharing=True)
    assert alice_client.get(QUOTA).json()["remaining"]["vgpus"] == 3, "now there is a GPU to share"
    ResourceGroup.objects.update(is_open=False)
    assert alice_client.get(QUOTA).json()["remaining"]["vgpus"] == 0, "and now there is none for her"
    assert quota["window"] == {"valid_from": None, "valid_until": "2020-01-01T00:00:00Z", "is_open": False}
    assert quota["is_init"] is False
    assert quota["tenant_storage"]["bytes_limit"] is None


def test_an_operator_sets_and_lists_quotas(
    operator_client: APIClient, alice: Actor, charlie: Actor, alice_client: APIClient
) -> None:
    body = {"caps": {"gpus": 2, "cpu_milli": 8000}, "valid_from": "2026-01-01T00:00:00Z", "bytes_limit": 10**9}
    told = operator_client.patch(f"{QUOTAS}/tenant/one", body, format="json").json()
    assert told == {
        "scope": "tenant", "name": "one", "caps": {"cpu_milli": 8000, "gpus": 2}, "used": {"cpu_milli": 0, "gpus": 0},
        "valid_from": "2026-01-01T00:00:00Z", "valid_until": None,
    }  # fmt: skip
    assert alice_client.get(QUOTA).json()["tenant_storage"]["bytes_limit"] == 10**9
    operator_client.patch(f"{QUOTAS}/tenant/one", {"caps": {"gpus": None}, "valid_from": None}, format="json")
    assert not QuotaWindow.objects.exists()
    operator_client.patch(f"{QUOTAS}/user/charlie", {"caps": {"running_runs": 1}, "inodes_limit": 7}, format="json")
    assert StorageUsage.objects.get(user_id=charlie.user_id).inodes_limit == 7
    items = operator_client.get(QUOTAS).json()["items"]
    assert [(item["scope"], item["name"], item["caps"]) for item in items] == [
        ("tenant", "one", {"cpu_milli": 8000}),
        ("user", "charlie", {"running_runs": 1}),
    ]
    assert len(operator_client.get(QUOTAS, {"scope": "user"}).json()["items"]) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("tenant/nobody", {"caps": {"gpus": 1}}, 404, "not_found"),
        ("node/local", {"caps": {"gpus": 1}}, 400, "not_a_choice"),
        ("tenant/one", {"caps": {"gpu": 1}}, 400, "unknown_field"),
        ("tenant/one", {"caps": {"gpus": -1}}, 400, "out_of_range"),
        ("tenant/one", {"caps": {"gpus": "4"}}, 400, "out_of_range"),
        ("tenant/one", {"cap": {"gpus": 1}}, 400, "unknown_field"),
        ("tenant/one", {"valid_from": "2026-02-01T00:00:00Z", "valid_until": "2026-01-01T00:00:00Z"}, 400,
         "out_of_range"),
    ],
)  # fmt: skip
def test_a_quota_that_can_not_be_is_refused_and_changes_nothing(
    operator_client: APIClient, alice: Actor, node: None, path: str, body: object, status: int, code: str
) -> None:
    response = operator_client.patch(f"{QUOTAS}/{path}", body, format="json")
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert not Usage.objects.filter(scope="tenant").exists()
    assert not QuotaWindow.objects.exists()


def test_a_key_of_an_operator_that_may_only_read_changes_nothing(operator_client: APIClient, node: None) -> None:
    reader = client_of(User.objects.get(username="olga"), scopes=["read"])
    assert reader.get(NODES).status_code == 200
    response = reader.patch(f"{NODES}/local", {"is_schedulable": False}, format="json")
    assert (response.status_code, error_of(response)["code"]) == (403, "scope_missing")
    assert Node.objects.get().is_schedulable


def test_an_operator_drains_a_node_and_declares_its_gpus(operator_client: APIClient, node: None) -> None:
    told = operator_client.patch(f"{NODES}/local", {"is_schedulable": False}, format="json").json()
    assert (told["name"], told["resource_group"], told["is_schedulable"]) == ("local", "default", False)
    assert [item["is_schedulable"] for item in operator_client.get(NODES).json()["items"]] == [False]
    body = {"node": "local", "uuid": "GPU-0", "memory_mib": 81559, "name": "NVIDIA H100", "allows_sharing": True}
    assert operator_client.post(GPUS, body, format="json").status_code == 201
    (gpu,) = operator_client.get(GPUS, {"node": "local"}).json()["items"]
    assert (gpu["uuid"], gpu["node"], gpu["allows_sharing"], gpu["cores_used"]) == ("GPU-0", "local", True, 0)
    assert error_of(operator_client.get(GPUS, {"node": "x"}))["code"] == "not_found"
    assert error_of(operator_client.post(GPUS, {**body, "uuid": "0"}, format="json"))["field"] == "uuid"
    assert error_of(operator_client.patch(f"{NODES}/x", {"is_schedulable": True}, format="json"))["code"] == "not_found"


def test_the_command_sets_in_the_units_that_people_use(alice: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("set_quota", "tenant", "one", "--cpu", "1.5", "--memory-gib", "8", "--runs", "4", "--storage-gib", "2",
                 "--until", "2026-12-31")  # fmt: skip
    caps = dict(Usage.objects.filter(scope="tenant").values_list("resource", "cap"))
    assert caps == {"cpu_milli": 1500, "memory_mib": 8192, "running_runs": 4}
    assert TenantStorage.objects.get(tenant=Tenant.objects.get(name="one")).bytes_limit == 2 * 2**30
    assert QuotaWindow.objects.get().valid_until == datetime(2026, 12, 31, tzinfo=UTC)
    assert "CPU cores        1.5" in capsys.readouterr().out
    call_command("set_quota", "tenant", "one", "--cpu", "none", "--until", "none")
    assert not Usage.objects.filter(resource="cpu_milli").exists()
    for words in (["tenant", "x", "--cpu", "1"], ["tenant", "one", "--cpu", "many"], ["tenant", "one", "--cpu", "-1"],
                  ["user", "alice", "--until", "soon"]):  # fmt: skip
        with pytest.raises(CommandError):
            call_command("set_quota", *words)


def test_the_auditor_repairs_only_when_asked(home: object, db: None, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_local_node()
    call_command("audit_quotas")
    assert "adds up" in capsys.readouterr().out
    Usage.objects.filter(resource="cpu_milli").update(used=5)
    for options, used in (((), 5), (("--repair",), 0)):
        with pytest.raises(SystemExit):
            call_command("audit_quotas", *options)
        assert Usage.objects.get(resource="cpu_milli").used == used
    call_command("audit_quotas")
