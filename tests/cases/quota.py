"""Bad input: more than there is."""

from __future__ import annotations

from typing import Any

from tests.cases.api_fields import with_resource
from tests.cases.registry import Scene, case

CREATE = "/kernel/fineTune/createLlmFineTuneTask"


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
