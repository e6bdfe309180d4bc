"""services and replicas."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.runs.models import Run
from clavier.runs.services import transition
from clavier.runs.states import RunState
from inference_app.models import Replica
from runner.contract import folder
from tests.api.native.conftest import World, error_of, write

URL = "/api/v1/services"


def body_of(world: World, **changes: Any) -> dict[str, Any]:
    """A body that is accepted, with changes."""
    return {"name": "more", "model_version": str(world.base.pk), **changes}


def replica_run(world: World) -> Run:
    """The run of the service's first replica."""
    run = Replica.objects.get(service_version__service=world.service, index=0).run
    assert run
    return run


def test_a_service_is_deployed_with_replicas(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    body = body_of(world, num_replicas=2, context_tokens=128, parallel=2, resources={"cpu_milli": 250})
    made = alice_client.post(URL, body, "json")
    assert made.status_code == 201
    service = made.json()
    assert (service["state"], service["desired_state"]) == ("CREATING", "running")
    version = service["versions"][0]
    assert (version["number"], version["num_replicas"], version["model_version"]["name"]) == (1, 2, "base@1")
    assert version["resources"]["cpu_milli"] == 250
    url = f"{URL}/{service['id']}"
    replicas = bob_client.get(f"{url}/replicas").json()["items"]
    assert [(item["index"], item["state"], item["service_version"]) for item in replicas] == [
        (0, "PENDING", 1),
        (1, "PENDING", 1),
    ]
    assert charlie_client.get(f"{url}/replicas").status_code == 404
    refused = charlie_client.post(URL, body, "json")
    assert (refused.status_code, error_of(refused)["field"]) == (404, "model_version")


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"name": "Not Allowed"}, 400, "bad_name", "name"),
        ({"name": "faq"}, 409, "already_exists", "name"),
        ({"num_replicas": 0}, 400, "out_of_range", "num_replicas"),
        ({"context_tokens": 1}, 400, "out_of_range", "context_tokens"),
        ({"model": "x"}, 400, "unknown_field", "model"),
        ({"resources": {"memory_mib": 67_108_864}}, 422, "unschedulable", "resources"),
    ],
)
def test_a_bad_service_names_its_field(
    alice_client: APIClient, world: World, changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    response = alice_client.post(URL, body_of(world, **changes), "json")
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (status, code, field)


def test_a_draft_is_started_stopped_and_deleted_by_its_owner(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    service = alice_client.post(URL, body_of(world, start=False), "json").json()
    assert service["state"] == "DRAFT"
    url = f"{URL}/{service['id']}"
    for verb in ("start", "stop"):
        assert charlie_client.post(f"{url}/{verb}").status_code == 404
        assert bob_client.post(f"{url}/{verb}").status_code == 403
    assert alice_client.get(f"{url}/log").status_code == 404, "a draft has no replica"
    assert error_of(alice_client.post(f"{url}/stop"))["code"] == "already_ended"
    assert alice_client.post(f"{url}/start").json()["state"] == "CREATING"
    assert error_of(alice_client.post(f"{url}/start"))["code"] == "already_started"
    assert error_of(alice_client.delete(url))["code"] == "in_use"
    assert alice_client.post(f"{url}/stop").json()["state"] == "STOPPED"
    assert alice_client.delete(url).status_code == 204
    assert alice_client.get(url).status_code == 404


def test_a_ready_replica_tells_its_engine_and_keeps_its_key(alice_client: APIClient, world: World) -> None:
    run = replica_run(world)
    assert transition(run, RunState.PREPARING)
    assert transition(run, RunState.RUNNING, started_at=datetime(2026, 1, 1, tzinfo=UTC))
    ready = {
        "engine": "llama.cpp",
        "parity": {"conversations": 3, "tokens": 99},
        "api_key": "inner",
        "endpoint": {"unix": "/x"},
    }
    write(run, folder.READY, json.dumps(ready).encode())
    assert alice_client.get(f"{URL}/{world.service.pk}").json()["state"] == "READY"
    response = alice_client.get(f"{URL}/{world.service.pk}/replicas")
    replica = response.json()["items"][0]
    assert (replica["engine"], replica["parity"]["tokens"]) == ("llama.cpp", 99)
    assert b"inner" not in response.content


def test_the_log_of_a_replica(alice_client: APIClient, charlie_client: APIClient, world: World) -> None:
    write(replica_run(world), "log.txt", b"listening\n")
    url = f"{URL}/{world.service.pk}/log"
    assert alice_client.get(url).json()["text"] == "listening\n"
    assert alice_client.get(f"{url}?replica=0&version=1&offset=-3").json()["next_offset"] == 10
    missing = alice_client.get(f"{url}?replica=7")
    assert (missing.status_code, error_of(missing)["field"]) == (404, "replica")
    assert charlie_client.get(url).status_code == 404


def test_a_list_takes_the_same_number_of_queries_however_long(
    alice_client: APIClient, world: World, django_assert_num_queries: Callable[[int], Any]
) -> None:
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(4):
            alice_client.get(URL)
        alice_client.post(URL, body_of(world, name=f"more-{number}"), "json")
