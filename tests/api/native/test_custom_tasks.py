"""fine-tune-tasks/custom: own code through the native API."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from tests.api.native.conftest import World, error_of
from tests.conftest import Spool
from tests.worlds import put_tree

URL = "/api/v1/fine-tune-tasks/custom"


@pytest.fixture
def body(alice: Actor, spooled: Spool, node: None) -> dict[str, Any]:
    """A body that is accepted."""
    put_tree(alice, spooled, {"code/train.py": "print(1)"})
    return {
        "name": "mine", "command": "python train.py --out ${output_dir}", "code_folder": "private/code",
        "hyperparameters": {"learning_rate": 1e-4}, "environment": {"MODE": "fast"}, "output_folder": "private/out",
        "options": {"priority": 3},
    }  # fmt: skip


def test_a_task_of_own_code_is_created_and_told_in_full(alice_client: APIClient, body: dict[str, Any]) -> None:
    made = alice_client.post(URL, body, "json")
    assert made.status_code == 201, made.json()
    task = made.json()
    assert (task["create_way"], task["recipe"], task["train_dataset"], task["state"]) == ("custom", "", None, "PENDING")
    assert task["own_code"]["command"] == body["command"]
    assert task["own_code"]["environment"] == {"MODE": "fast"}
    assert (task["hyperparameters"], task["options"]) == ({"learning_rate": "0.0001"}, {"priority": 3})
    assert alice_client.get(f"/api/v1/fine-tune-tasks/{task['id']}").json() == task
    assert [one["name"] for one in alice_client.get("/api/v1/fine-tune-tasks").json()["items"]] == ["mine"]


def test_every_bad_field_is_named_at_once(alice_client: APIClient, body: dict[str, Any]) -> None:
    bad = {"command": "a | b", "environment": {"LD_PRELOAD": "x"}, "hyperparameters": {"--lr": 1}}
    error = error_of(alice_client.post(URL, body | bad, "json"))
    assert {problem["code"] for problem in error["problems"]} == {"bad_value", "reserved_name", "bad_name"}
    missing = error_of(alice_client.post(URL, {}, "json"))
    assert {problem["field"] for problem in missing["problems"]} == {"name", "command"}


def test_charlie_and_bob_find_no_folder_of_alice(
    charlie_client: APIClient, bob_client: APIClient, body: dict[str, Any], world: World
) -> None:
    for client in (charlie_client, bob_client):
        response = client.post(URL, body, "json")
        assert (response.status_code, error_of(response)["field"]) == (404, "code_folder")
    model = {"base_model": str(world.base.pk), "code_folder": ""}
    assert error_of(charlie_client.post(URL, body | model, "json"))["field"] == "base_model"


def test_a_viewer_runs_nothing(viewer_client: APIClient, body: dict[str, Any]) -> None:
    assert viewer_client.post(URL, body, "json").status_code == 403
