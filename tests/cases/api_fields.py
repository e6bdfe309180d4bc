"""Bad input: bodies and their fields."""

from __future__ import annotations

from typing import Any

from finetune_app.models import FineTuneTask
from tests.cases.registry import ENGLISH, Scene, case

CREATE, EVALUATE = "/kernel/fineTune/createLlmFineTuneTask", "/model/evaluation/task/create"
SERVICE = "/model/modelServer/createModelInferenceServer"


def with_resource(**resource: Any) -> dict[str, Any]:
    """A body whose one container asks for this."""
    return {"resource": [{"nodeType": "master", "numbers": 1, "cpuNumber": 1, "memory": 1, **resource}]}


def with_version(scene: Scene, **version: Any) -> dict[str, Any]:
    """A service whose one version has these fields."""
    return {"modelServerVersions": [{**scene.bodies[SERVICE]["modelServerVersions"][0], **version}]}


@case("API-002")
def wrong_top_type(scene: Scene) -> Any:
    return scene.raw(CREATE, "[]")


@case("API-003")
def wrong_content_type(scene: Scene) -> Any:
    return scene.raw(CREATE, '{"name":"a"}', "text/plain")


@case("API-004")
def duplicate_keys(scene: Scene) -> Any:
    return scene.raw(CREATE, '{"name":"a","name":"b"}')


@case("API-005")
def deep_nesting(scene: Scene) -> Any:
    return scene.raw(CREATE, "[" * 10_000 + "]" * 10_000)


@case("API-006")
def body_over_the_limit(scene: Scene) -> Any:
    return scene.post(CREATE, {"name": "x" * 20_000_000})


@case("API-007")
def nan_and_infinity(scene: Scene) -> Any:
    infinite = scene.raw(CREATE, '{"learning_rate": Infinity}')
    assert infinite.json()["error"] == "malformed_json"
    return scene.raw(CREATE, '{"learning_rate": NaN}')


@case("API-009")
def huge_integer(scene: Scene) -> Any:
    return scene.raw(CREATE, '{"isPretrain":' + "9" * 5000 + "}")


@case("API-011")
def boolean_for_an_integer(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(gpuResource={"gpuNum": True}))


@case("API-012")
def negative_numbers(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(cpuNumber=-1, memory=-1, numbers=-1, gpuResource={"gpuNum": -1}))


@case("API-013")
def zero_cpu_and_memory(scene: Scene) -> Any:
    return scene.post(CREATE, with_resource(cpuNumber=0, memory=0))


@case("API-014")
def missing_required_field(scene: Scene) -> Any:
    return scene.post(EVALUATE, {"outputDir": None})


@case("API-015")
def all_fields_null(scene: Scene) -> Any:
    response = scene.post(EVALUATE, dict.fromkeys(scene.bodies[EVALUATE]))
    missing = {problem["field"] for problem in response.json()["problems"]}
    assert {"name", "image", "command", "outputDir", "resource"} <= missing
    return response


@case("API-016")
def unknown_field(scene: Scene) -> Any:
    return scene.post(EVALUATE, {"outputDirr": "/x"})


@case("API-017")
def unknown_enum_value(scene: Scene) -> Any:
    return scene.post(CREATE, {"fineTuneStrategy": "QLoRA++"})


@case("API-018")
def both_inputs(scene: Scene) -> Any:
    return scene.post(EVALUATE, {"inputType": "local", "inputDir": "/a", "datasetId": "1"})


@case("API-023")
def fewest_above_most_replicas(scene: Scene) -> Any:
    return scene.post(SERVICE, with_version(scene, predictMinReplicas=3, predictMaxReplicas=1))


@case("API-024")
def rates_over_100(scene: Scene) -> Any:
    version = scene.bodies[SERVICE]["modelServerVersions"][0]
    return scene.post(SERVICE, {"modelServerVersions": [{**version, "rate": 60}, {**version, "rate": 60}]})


@case("API-025")
def bad_ports(scene: Scene) -> Any:
    return [scene.post(SERVICE, with_version(scene, imagePorts=ports)) for ports in ("0", "65536", "80,abc", "22;id")]


@case("API-030")
def same_key_twenty_times(scene: Scene) -> Any:
    responses = [scene.post(CREATE, {"name": "once"}, HTTP_IDEMPOTENCY_KEY="one") for _ in range(20)]
    assert len({response.json()["data"]["taskId"] for response in responses}) == 1
    assert FineTuneTask.objects.filter(name="once").count() == 1
    return responses[-1]


@case("API-033")
def a_model_of_a_live_service(scene: Scene) -> Any:
    found = scene.client.get("/api/v1/models?search=served").json()["items"]
    return scene.client.delete(f"/api/v1/models/{found[0]['id']}", **ENGLISH)


@case("API-034")
def a_data_set_of_a_running_job(scene: Scene) -> Any:
    found = scene.client.get("/api/v1/datasets?search=faq").json()["items"]
    refused = scene.client.delete(f"/api/v1/datasets/{found[0]['id']}", **ENGLISH)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert "task 'there'" in refused.json()["error"]["message"]
    assert scene.client.get("/api/v1/datasets?search=faq").json()["items"] == found
    return []
