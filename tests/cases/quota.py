"""Bad input: more than there is."""

from __future__ import annotations

from typing import Any

from clavier.quotas.models import Gpu, Node
from clavier.quotas.services import count_devices, set_cap
from tests.cases.api_fields import with_resource
from tests.cases.registry import ENGLISH, Scene, case

CREATE = "/kernel/fineTune/createLlmFineTuneTask"


def waits(scene: Scene, body: dict[str, Any], *named: str) -> None:
    """A task that is over a cap of its tenant is taken, holds nothing, and says for what it waits."""
    made = scene.post(CREATE, body)
    assert made.status_code == 200, made.json()
    url = f"/api/v1/fine-tune-tasks/{made.json()['data']['taskId']}/status"
    told = scene.client.get(url, **ENGLISH).json()
    assert told["state"] == "PENDING"
    for word in named:
        assert word in told["why"] + told["starts_when"], told


@case("QUOTA-001")
def more_gpus_than_the_quota(scene: Scene) -> Any:
    node = Node.objects.get()
    for number in range(2):
        Gpu.objects.create(uuid=f"GPU-{number}", node=node, memory_mib=80_000)
    count_devices(node)
    set_cap(scope="tenant", scope_id=scene.alice.tenant_id, resource="gpus", cap=1)
    waits(scene, with_resource(gpuResource={"gpuNum": 2}), "GPU", "quota")
    return []


@case("QUOTA-004")
def more_jobs_than_allowed(scene: Scene) -> Any:
    set_cap(scope="tenant", scope_id=scene.alice.tenant_id, resource="running_runs", cap=0)
    waits(scene, {}, "run", "quota")
    return []


@case("QUOTA-013")
def a_cap_below_the_present_use(scene: Scene) -> Any:
    url = f"/api/v1/quotas/tenant/{scene.alice.tenant_name}"
    return scene.operator.patch(url, {"caps": {"running_runs": 0}}, format="json", **ENGLISH)


@case("QUOTA-002")
def more_gpus_than_any_node(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(gpuResource={"gpuNum": 1000}))


@case("QUOTA-003")
def more_memory_than_the_host(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(memory=10**6))


@case("QUOTA-005")
def unknown_share(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(gpuResource={"gpuShare": "half"}))


@case("QUOTA-006")
def unknown_slice(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(gpuResource={"gpuNum": 1, "migRes": "9g.999gb"}))


@case("QUOTA-007")
def cores_without_a_share(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(gpuResource={"gpuCores": 50}))
