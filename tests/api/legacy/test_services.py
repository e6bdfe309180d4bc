"""7. Services: create and start, save, page, by id, instances."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from inference_app.models import InferenceService
from tests.api.legacy.conftest import failure, form, payload
from tests.api.native.conftest import make_model

START, SAVE = "/model/modelServer/createModelInferenceServer", "/model/modelServer/createModelServer"
PAGE, BY_ID = "/model/modelServer/findModelServerPageList", "/model/modelServer/findModelServerById"
INSTANCES = "/model/modelServerVersion/findModelServerVersionById"


@pytest.fixture
def body(alice: Actor, node: None) -> dict[str, Any]:
    """The document's own request to create a service."""
    return {
        "modelServer": {"name": "334", "description": "d", "createUser": "alice", "userName": "zjm", "path": "/aa"},
        "modelServerVersions": [
            {
                "createUser": "alice", "userName": "zjm", "cpu": 1, "memory": 1, "command": "", "imagePorts": "5050",
                "envs": '[{"At":"122"}]', "rate": 100, "aiApplicationVersionId": str(make_model(alice).pk), "rates": [],
                "reqMethod": "rest", "gpuShare": "none", "gpu": 0, "predictMinReplicas": 1, "predictMaxReplicas": 1,
                "metric": 1, "monitorThreshold": "100", "volumes": "[]", "hyperParameterList": "null",
            },
        ],
    }  # fmt: skip


def post(client: APIClient, route: str, body: dict[str, Any]) -> Any:
    """A JSON request."""
    return client.post(route, body, format="json")


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_service_is_created_started_listed_and_shown(
    alice_client: APIClient, body: dict[str, Any], prefix: str
) -> None:
    made = payload(post(alice_client, prefix + START, body))
    server, (version,) = made["modelServer"], made["modelServerVersions"]
    assert (server["name"], server["description"], server["path"]) == ("334", "d", "/aa")
    assert (server["status"], InferenceService.objects.get().desired_state) == ("Creating", "running")
    written = body["modelServerVersions"][0]
    same = set(written) - {"createUser", "userName"}
    assert {name: version[name] for name in same} == {name: written[name] for name in same}
    criteria = {"pageNum": 1, "pageSize": 10, "queryCriteria": {"createUser": "alice", "name": ""}}
    assert payload(post(alice_client, prefix + PAGE, criteria))["rows"][0]["id"] == server["id"]
    for name in ("id", "modelServerId"):
        assert payload(post(alice_client, prefix + BY_ID, {name: server["id"]})) == made
    for name in ("id", "modelServerVersionId"):
        found = payload(post(alice_client, prefix + INSTANCES, {name: version["id"]}))
        assert [instance["status"] for instance in found["instances"]] == ["Pending"]


def test_a_service_is_saved_without_being_started(alice_client: APIClient, body: dict[str, Any]) -> None:
    payload(alice_client.post("/file/file/uploadFolder", **form("x", b"x", currentPath="/lightgbm")))
    version = body["modelServerVersions"][0]
    version |= {"volumes": '[{"src":"/lightgbm","dst":"/dd"}]', "envs": [{"API_KEY": "k"}, {"eee": "tess"}]}
    version["volumePath"] = "/lightgbm"
    del version["predictMaxReplicas"], version["metric"]
    refused = failure(post(alice_client, SAVE, body), 400, "not_honoured", "modelServerVersions[0].volumes")
    assert "modelServerVersions[0].volumePath：挂载的目录只对自定义服务程序有效" in refused
    version["command"] = "serve"
    made = payload(post(alice_client, SAVE, body))
    assert made["modelServer"]["status"] == "Draft"
    found = made["modelServerVersions"][0]
    assert (found["volumes"], found["envs"]) == (version["volumes"], '[{"API_KEY":"***"},{"eee":"tess"}]')
    assert payload(post(alice_client, INSTANCES, {"id": int(found["id"])}))["instances"] == []


def test_two_versions_share_the_traffic(alice_client: APIClient, body: dict[str, Any]) -> None:
    first = body["modelServerVersions"][0]
    both = {**body, "modelServerVersions": [{**first, "rate": 60}, {**first, "rate": 40, "replica": 2,
                                                                    "predictMaxReplicas": 3}]}  # fmt: skip
    made = payload(post(alice_client, SAVE, both))["modelServerVersions"]
    assert [(version["version"], version["rate"], version["replica"]) for version in made] == [(1, 60, 1), (2, 40, 2)]


@pytest.mark.parametrize(
    ("change", "status", "error", "field"),
    [
        ({"rate": 60}, 400, "rates_not_100", ""),
        ({"imagePorts": "80,abc"}, 400, "out_of_range", ".imagePorts"),
        ({"predictMinReplicas": 3}, 400, "out_of_range", ".predictMinReplicas"),
        ({"metric": 4}, 400, "out_of_range", ".metric"),
        ({"volumes": '[{"src":"/../two/data","dst":"/dd"}]'}, 400, "path_outside_root", ".volumes[0].src"),
        ({"volumes": '[{"src":"/none","dst":"/dd"}]'}, 404, "not_found", ".volumes[0].src"),
        ({"volumes": "[{"}, 400, "malformed_json", ".volumes"),
        ({"envs": '{"A":"1"}'}, 400, "wrong_type", ".envs"),
        ({"aiApplicationVersionId": ""}, 400, "required", ".aiApplicationVersionId"),
        ({"aiApplicationVersionId": "1"}, 404, "not_found", ".aiApplicationVersionId"),
        ({"image": "none:1"}, 404, "not_found", ".image"),
        ({"modelServerId": "7"}, 422, "unprocessable", ".modelServerId"),
        ({"gpuMem": 8, "gpuShare": "none"}, 400, "conflicting_fields", ".gpuMem"),
        ({"gpuCores": 50}, 400, "conflicting_fields", ".gpuCores"),
        ({"gpuShare": "share", "gpu": 4}, 400, "required", ".gpuCores"),
        ({"gpuShare": "share", "gpuCores": 9, "gpuMem": 9, "gpu": 4}, 400, "conflicting_fields", ".gpu"),
        ({"gpuShare": "mig"}, 400, "required", ".migRes"),
        ({"gpu": 64}, 422, "unschedulable", ""),
        ({"gpu": 1000}, 422, "unschedulable", ".gpu"),
        ({"reqMethod": "grpc"}, 422, "grpc_not_served", ".reqMethod"),
    ],
)
def test_what_is_wrong_with_a_version_is_named(
    alice_client: APIClient, body: dict[str, Any], change: dict[str, Any], status: int, error: str, field: str
) -> None:
    body["modelServerVersions"][0] |= change
    place = f"modelServerVersions{'' if error == 'rates_not_100' else '[0]'}{field}"
    failure(post(alice_client, START, body), status, error, place)
    assert InferenceService.objects.count() == 0


def test_a_name_is_required_legal_and_new(alice_client: APIClient, body: dict[str, Any]) -> None:
    for name, status, error in (("", 400, "required"), ("Not Legal", 400, "bad_name")):
        failure(post(alice_client, SAVE, {**body, "modelServer": {"name": name}}), status, error, "modelServer.name")
    payload(post(alice_client, SAVE, body))
    failure(post(alice_client, SAVE, body), 409, "already_exists", "modelServer.name")
    failure(post(alice_client, SAVE, {**body, "modelServerVersions": []}), 400, "required", "modelServerVersions")


def test_charlie_sees_and_serves_nothing_of_alices(
    charlie_client: APIClient, alice_client: APIClient, alice_user: User, body: dict[str, Any]
) -> None:
    made = payload(post(alice_client, SAVE, body))
    failure(post(charlie_client, BY_ID, {"id": made["modelServer"]["id"]}), 404, "not_found", "id")
    failure(post(charlie_client, INSTANCES, {"id": made["modelServerVersions"][0]["id"]}), 404, "not_found", "id")
    failure(post(charlie_client, INSTANCES, {"id": "no id"}), 404, "not_found", "id")
    assert payload(post(charlie_client, PAGE, {}))["total"] == 0
    named = {"queryCriteria": {"createUser": str(alice_user.pk)}}
    failure(post(charlie_client, PAGE, named), 403, "identity_mismatch", "queryCriteria.createUser")
    text = json.dumps(body).replace('"alice"', '"charlie"')
    refused = post(charlie_client, START, json.loads(text))
    failure(refused, 404, "not_found", "modelServerVersions[0].aiApplicationVersionId")


def test_an_id_is_required(alice_client: APIClient) -> None:
    failure(post(alice_client, BY_ID, {}), 400, "required", "id")
    failure(post(alice_client, INSTANCES, {"modelServerId": "1"}), 400, "unknown_field", "modelServerId")
