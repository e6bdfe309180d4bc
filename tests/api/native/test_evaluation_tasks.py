"""evaluation-tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from rest_framework.test import APIClient

from evaluation_app.models import Score
from tests.api.native.conftest import World, end, error_of, write

URL = "/api/v1/evaluation-tasks"


def body_of(world: World, **changes: Any) -> dict[str, Any]:
    """A body that is accepted, with changes."""
    ids = {"model_version": str(world.base.pk), "dataset_version": str(world.dataset_version.pk)}
    return {"name": "again", **ids, **changes}


def test_an_evaluation_is_created_and_started(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    body = body_of(world, metrics=["bleu"], max_new_tokens=8, limit=3, description="d")
    made = alice_client.post(URL, body, "json")
    assert made.status_code == 201
    task = made.json()
    assert (task["state"], task["metrics"], task["limit"], task["scores"]) == ("PENDING", ["bleu"], 3, {})
    assert task["decoding"]["max_new_tokens"] == 8
    assert bob_client.get(f"{URL}/{task['id']}").json() == task
    assert charlie_client.get(f"{URL}/{task['id']}").status_code == 404
    response = charlie_client.post(URL, body, "json")
    assert (response.status_code, error_of(response)["field"]) == (404, "model_version")


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"metrics": ["blue"]}, 400, "not_a_choice", "metrics.0"),
        ({"max_new_tokens": 0}, 400, "out_of_range", "max_new_tokens"),
        ({"limit": 0}, 400, "out_of_range", "limit"),
        ({"name": ""}, 400, "required", "name"),
        ({"dataset_version": str(uuid4())}, 404, "not_found", "dataset_version"),
    ],
)
def test_a_bad_evaluation_names_its_field(
    alice_client: APIClient, world: World, changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    response = alice_client.post(URL, body_of(world, **changes), "json")
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (status, code, field)


def test_scores_stand_base_beside_tuned(alice_client: APIClient, world: World) -> None:
    for label, value in (("base", 0.1), ("tuned", 0.9)):
        Score.objects.create(
            evaluation=world.evaluation, model_version=world.base, label=label, metric="bleu", value=value, low=0.0,
            high=1.0, num_samples=5,
        )  # fmt: skip
    scores = alice_client.get(f"{URL}/{world.evaluation.pk}").json()["scores"]
    assert scores == {
        "bleu": {"base": {"value": 0.1, "low": 0, "high": 1}, "tuned": {"value": 0.9, "low": 0, "high": 1}}
    }


def test_samples_are_read_by_bytes(alice_client: APIClient, charlie_client: APIClient, world: World) -> None:
    run = world.evaluation.run
    assert run
    url = f"{URL}/{world.evaluation.pk}/samples"
    assert alice_client.get(url).json() == {"items": [], "next_offset": 0}
    lines = [json.dumps({"question": f"问{i}"}, ensure_ascii=False) for i in range(3)]
    write(run, "output/samples.jsonl", ("\n".join(lines) + "\n").encode())
    page = alice_client.get(url).json()
    assert [item["question"] for item in page["items"]] == ["问0", "问1", "问2"]
    assert alice_client.get(f"{url}?offset={page['next_offset']}").json()["items"] == []
    assert charlie_client.get(url).status_code == 404


def test_stop_retry_and_delete(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.evaluation.pk}"
    assert alice_client.delete(url).status_code == 409
    for verb in ("stop", "retry"):
        assert bob_client.post(f"{url}/{verb}").status_code == 403
        assert charlie_client.post(f"{url}/{verb}").status_code == 404
    assert error_of(alice_client.post(f"{url}/retry"))["code"] == "not_retriable"
    assert alice_client.post(f"{url}/stop").json()["state"] == "STOPPED"
    assert alice_client.post(f"{url}/retry").json()["state"] == "PENDING"
    assert alice_client.post(f"{url}/stop").status_code == 200
    assert alice_client.delete(url).status_code == 204
    assert alice_client.get(f"{url}/status").status_code == 404


def test_status_log_metrics_and_events(alice_client: APIClient, bob_client: APIClient, world: World) -> None:
    run, url = world.evaluation.run, f"{URL}/{world.evaluation.pk}"
    assert run
    write(run, "log.txt", b"loading\n")
    write(run, "metrics.jsonl", b'{"kind": "progress", "step": 1}\n')
    end(run)
    assert bob_client.get(f"{url}/status").json()["state"] == "FAILED"
    assert bob_client.get(f"{url}/log").json()["text"] == "loading\n"
    assert bob_client.get(f"{url}/metrics").json()["items"][0]["step"] == 1
    assert [event["to_state"] for event in bob_client.get(f"{url}/events").json()["items"]] == ["FAILED", "PENDING"]
    assert alice_client.get(f"{url}/log/download").status_code == 200


def test_a_list_takes_the_same_number_of_queries_however_long(
    alice_client: APIClient, world: World, django_assert_num_queries: Callable[[int], Any]
) -> None:
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(3):
            assert alice_client.get(URL, {"search": "a"} if number else {}).json()["items"]
        alice_client.post(URL, body_of(world, name=f"again {number}"), "json")
