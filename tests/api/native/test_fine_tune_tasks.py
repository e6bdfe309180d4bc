"""fine-tune-tasks: create, start, stop, retry, delete, and what is seen of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from clavier.runs.states import EndReason, RunState
from inference_app.services import create_service
from models_app.models import ModelVersion
from tests.api.native.conftest import World, end, error_of, make_dataset, make_task, names, write
from tests.api.native.test_files import content_of
from tests.worlds import make_model_version, put_tree

URL = "/api/v1/fine-tune-tasks"


def body_of(world: World, **changes: Any) -> dict[str, Any]:
    """A body that is accepted, with changes."""
    return {
        "name": "lora", "recipe": "sft", "method": "lora", "base_model": str(world.base.pk),
        "train_dataset": str(world.dataset_version.pk), **changes,
    }  # fmt: skip


def test_a_task_is_created_started_and_told_in_full(alice_client: APIClient, world: World) -> None:
    body = body_of(
        world, hyperparameters={"lora_r": 4}, resources={"memory_mib": 1024}, time_limit_s=60, description="d",
        output_model_name="tuned", validation_dataset=str(world.dataset_version.pk),
    )  # fmt: skip
    made = alice_client.post(URL, body, "json")
    assert made.status_code == 201
    task = made.json()
    assert (task["state"], task["run"]["state"]) == ("PENDING", "PENDING")
    assert (task["base_model"]["name"], task["train_dataset"]["name"]) == ("base@1", "faq v1")
    assert task["validation_dataset"]["id"] == str(world.dataset_version.pk)
    assert (task["hyperparameters"]["lora_r"], task["hyperparameters"]["optim"]) == (4, "adamw")
    assert task["resources"] == {"cpu_milli": 1000, "memory_mib": 1024, "gpus": 0}
    assert (task["output_model_name"], task["output_version"], task["created_by"]) == ("tuned", None, "alice")
    assert alice_client.get(f"{URL}/{task['id']}").json() == task


def test_a_service_that_scores_is_a_reward(
    alice: Actor, alice_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    scorers = [make_model_version(alice, "scorer", task="reward") for _ in range(2)]
    make = {"actor": alice, "start": False}
    create_service(name="judge", model_version=scorers[0].pk, **make)
    both = [{"model_version": scorer.pk, "traffic_percent": 50} for scorer in scorers]
    create_service(name="two", versions=both, **make)
    create_service(name="writer", model_version=world.base.pk, **make)
    create_service(name="own", model_version=scorers[0].pk, command="python serve.py ${socket}", **make)
    for service, scorer in (("judge", 0), ("judge@1", 0), ("two@2", 1)):
        made = alice_client.post(URL, body_of(world, recipe="rl", reward_service=service, start=False), "json")
        assert made.status_code == 201, made.content
        assert made.json()["reward_model"]["id"] == str(scorers[scorer].pk)
    refusals = [
        ({"reward_service": "two"}, 400, "ambiguous"),
        ({"reward_service": "writer"}, 400, "wrong_task"),
        ({"reward_service": "own"}, 400, "wrong_task"),
        ({"reward_service": "none"}, 404, "model_not_found"),
        ({"reward_service": "judge@9"}, 404, "model_not_found"),
        ({"reward_service": "judge", "reward_model": str(scorers[1].pk)}, 400, "conflicting_fields"),
    ]
    for change, status, code in refusals:
        refused = alice_client.post(URL, body_of(world, recipe="rl", **change), "json")
        error = error_of(refused)
        assert (refused.status_code, error["code"], error["field"]) == (status, code, "reward_service")
    stranger = charlie_client.post(URL, body_of(world, recipe="rl", reward_service="judge"), "json")
    assert (stranger.status_code, error_of(stranger)["code"]) == (404, "model_not_found")
    estimate = {name: value for name, value in body_of(world, recipe="rl").items() if name != "name"}
    assert alice_client.post(f"{URL}/estimate", estimate | {"reward_service": "judge"}, "json").status_code == 200


def test_every_bad_hyperparameter_is_named_at_once(alice_client: APIClient, world: World) -> None:
    body = body_of(world, hyperparameters={"lora_r": 0, "learning_rat": 1, "optim": "adam"})
    response = alice_client.post(URL, body, "json")
    assert response.status_code == 400
    problems = {problem["field"]: problem for problem in error_of(response)["problems"]}
    assert set(problems) == {f"hyperparameters.{name}" for name in ("lora_r", "learning_rat", "optim")}
    codes = {name.removeprefix("hyperparameters."): problem["code"] for name, problem in problems.items()}
    assert codes == {"lora_r": "out_of_range", "learning_rat": "unknown_field", "optim": "not_a_choice"}
    assert "learning_rate" in problems["hyperparameters.learning_rat"]["message"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"recipe": "magic"}, 400, "not_a_choice", "recipe"),
        ({"method": "magic"}, 400, "not_a_choice", "method"),
        ({"recipe": "pretrain", "method": "lora"}, 400, "not_a_choice", "method"),
        ({"base_model": None}, 400, "required", "base_model"),
        ({"base_model": str(uuid4())}, 404, "not_found", "base_model"),
        ({"train_dataset": str(uuid4())}, 404, "not_found", "train_dataset"),
        ({"recipe": "pretrain", "method": "full", "base_model": None}, 400, "missing_column", "train_dataset"),
        ({"time_limit_s": 0}, 400, "out_of_range", "time_limit_s"),
        ({"resources": {"gpu": 1}}, 400, "unknown_field", "resources.gpu"),
        ({"resources": {"cpu_milli": True}}, 400, "wrong_type", "resources.cpu_milli"),
        ({"resources": {"gpus": 8}}, 422, "unschedulable", "resources"),
        ({"hyperparameters": []}, 400, "wrong_type", "hyperparameters"),
        ({"start": "yes"}, 400, "wrong_type", "start"),
        ({"resources": {"gpus": "two"}}, 400, "wrong_type", "resources.gpus"),
        ({"hyperparameters": {"load_best": True}}, 400, "required", "validation_dataset"),
        ({"hyperparameters": {"early_stopping_patience": 2}}, 400, "required", "validation_dataset"),
        (
            {"recipe": "rl", "hyperparameters": {"kl_target": 0.5, "algorithm": "grpo", "reward_function": "length"}},
            400,
            "conflicting_fields",
            "hyperparameters.kl_target",
        ),
        (
            {"recipe": "reward", "hyperparameters": {"length_policy": "split"}},
            400,
            "not_a_choice",
            "hyperparameters.length_policy",
        ),
    ],
)
def test_a_bad_task_names_its_field(
    alice_client: APIClient, world: World, changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    response = alice_client.post(URL, body_of(world, **changes), "json")
    error = error_of(response)
    assert (response.status_code, error["code"], error["field"]) == (status, code, field)
    assert len(alice_client.get(URL).json()["items"]) == 1


def test_an_encoder_decoder_can_not_split_targets(alice_client: APIClient, alice: Actor, world: World) -> None:
    base = make_model_version(alice, "t5", task="seq2seq")
    body = body_of(world, recipe="seq2seq", base_model=str(base.pk), hyperparameters={"length_policy": "split"})
    for url in (URL, f"{URL}/estimate"):
        response = alice_client.post(url, {k: v for k, v in body.items() if url == URL or k != "name"}, "json")
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "conflicting_fields")
        assert error["field"] == "hyperparameters.length_policy"
    assert len(alice_client.get(URL).json()["items"]) == 1


def test_charlie_tunes_neither_the_model_nor_on_the_data_of_alice(
    charlie_client: APIClient, charlie: Actor, world: World
) -> None:
    own = make_dataset(charlie)
    for changes, field in (({}, "base_model"), ({"train_dataset": str(own.pk)}, "base_model")):
        response = charlie_client.post(URL, body_of(world, **changes), "json")
        assert (response.status_code, error_of(response)["field"]) == (404, field)


def test_a_saved_task_is_started_once(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    task = alice_client.post(URL, body_of(world, start=False), "json").json()
    assert (task["state"], task["run"]) == (None, None)
    url = f"{URL}/{task['id']}"
    assert alice_client.get(f"{url}/status").json()["state"] is None
    assert alice_client.get(f"{url}/log").json() == {"text": "", "next_offset": 0, "size": 0}
    assert alice_client.get(f"{url}/metrics").json() == {"items": [], "next_offset": 0}
    assert alice_client.get(f"{url}/events").json()["items"] == []
    assert alice_client.get(f"{url}/log/download").status_code == 404
    assert error_of(alice_client.post(f"{url}/stop"))["code"] == "already_ended"
    assert charlie_client.post(f"{url}/start").status_code == 404
    assert bob_client.post(f"{url}/start").status_code == 403
    assert alice_client.post(f"{url}/start").json()["state"] == "PENDING"
    assert error_of(alice_client.post(f"{url}/start"))["code"] == "already_started"


def test_stop_retry_and_delete(alice_client: APIClient, bob_client: APIClient, world: World) -> None:
    url = f"{URL}/{world.task.pk}"
    assert error_of(alice_client.post(f"{url}/retry"))["code"] == "not_retriable"
    refused = alice_client.delete(url)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "in_use")
    for verb in ("stop", "retry"):
        assert bob_client.post(f"{url}/{verb}").status_code == 403
    assert alice_client.post(f"{url}/stop").json()["state"] == "STOPPED"
    assert error_of(alice_client.post(f"{url}/stop"))["code"] == "already_ended"
    assert alice_client.post(f"{url}/retry").json()["state"] == "PENDING"
    assert [run["state"] for run in alice_client.get(f"{url}/runs").json()["items"]] == ["PENDING", "STOPPED"]
    alice_client.post(f"{url}/stop")
    assert alice_client.delete(url).status_code == 204
    assert alice_client.get(url).status_code == 404


def test_a_verb_takes_no_fields(alice_client: APIClient, world: World) -> None:
    error = error_of(alice_client.post(f"{URL}/{world.task.pk}/stop", {"force": True}, "json"))
    assert (error["code"], error["field"]) == ("unknown_field", "force")


def test_a_retry_sent_twice_with_a_key_makes_one_run(alice_client: APIClient, world: World) -> None:
    end(world.run)
    url = f"{URL}/{world.task.pk}"
    answers = [alice_client.post(f"{url}/retry", HTTP_IDEMPOTENCY_KEY="again") for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert len(alice_client.get(f"{url}/runs").json()["items"]) == 2


def test_status_tells_why_and_where_it_waits(alice_client: APIClient, bob_client: APIClient, world: World) -> None:
    status = bob_client.get(f"{URL}/{world.task.pk}/status").json()
    assert (status["state"], status["position"], status["progress"]) == ("PENDING", 2, {}), "the replica goes first"
    write(world.run, "metrics.jsonl", b'{"kind": "phase", "phase": "train"}\n{"kind": "progress", "step": 3}\n')
    end(world.run)
    status = alice_client.get(f"{URL}/{world.task.pk}/status").json()
    assert (status["state"], status["end_reason"], status["message"]) == ("FAILED", "EXIT_NONZERO", "It ended.")
    assert status["progress"]["progress"]["step"] == 3


def test_log_and_metrics_are_followed_by_bytes(alice_client: APIClient, world: World) -> None:
    url = f"{URL}/{world.task.pk}"
    write(world.run, "log.txt", "第一行\n".encode() + b"\xff broken\nhalf")
    first = alice_client.get(f"{url}/log").json()
    assert first == {"text": "第一行\n\ufffd broken\n", "next_offset": 19, "size": 23}
    write(world.run, "log.txt", "第一行\n".encode() + b"\xff broken\nhalf a line\n")
    assert alice_client.get(f"{url}/log?offset=19").json()["text"] == "half a line\n"
    assert alice_client.get(f"{url}/log?offset=-14").json()["text"] == "half a line\n"
    assert alice_client.get(f"{url}/log?offset=999").json()["text"] == ""
    for query in ("offset=x", "limit=0", "limit=9999999", "ofset=1"):
        assert alice_client.get(f"{url}/log?{query}").status_code == 400
    write(world.run, "metrics.jsonl", b'{"kind": "metric", "loss": 2.5}\nno json\n{"kind": "metric", "loss": 1.5}\n')
    metrics = alice_client.get(f"{url}/metrics").json()
    assert [event["loss"] for event in metrics["items"]] == [2.5, 1.5]
    assert alice_client.get(f"{url}/metrics?offset={metrics['next_offset']}").json()["items"] == []


def test_a_line_longer_than_the_limit_is_followed_too(alice_client: APIClient, world: World) -> None:
    content = "字" * 1000
    write(world.run, "log.txt", f"{content}\n".encode())
    text, offset = "", 0
    for _ in range(4):
        part = alice_client.get(f"{URL}/{world.task.pk}/log?offset={offset}&limit=1024").json()
        text, offset = text + part["text"], part["next_offset"]
    assert (text, offset) == (f"{content}\n", 3001)


def test_the_log_is_downloaded_as_text(alice_client: APIClient, charlie_client: APIClient, world: World) -> None:
    write(world.run, "log.txt", "一\nhalf".encode())
    url = f"{URL}/{world.task.pk}/log/download"
    response = alice_client.get(url)
    assert content_of(response) == "一\nhalf".encode()
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert response["Content-Disposition"] == 'attachment; filename="tune.log"'
    assert charlie_client.get(url).status_code == 404


def test_events_tell_what_happened_newest_first(alice_client: APIClient, world: World) -> None:
    end(world.run, RunState.STOPPED, EndReason.STOPPED_BY_USER)
    events = alice_client.get(f"{URL}/{world.task.pk}/events").json()["items"]
    assert [event["to_state"] for event in events] == ["STOPPED", "PENDING"]
    assert (events[1]["actor_name"], events[0]["reason"]) == ("alice", "STOPPED_BY_USER")


def test_a_completed_task_shows_its_version_and_is_kept_for_it(
    alice_client: APIClient, alice: Actor, world: World
) -> None:
    end(world.run)
    made = ModelVersion.objects.create(
        tenant_id=alice.tenant_id, created_by_id=alice.user_id, model=world.base.model, number=2, state="ready",
        source="fine_tune", run=world.run,
    )  # fmt: skip
    url = f"{URL}/{world.task.pk}"
    assert alice_client.get(url).json()["output_version"] == {"id": str(made.pk), "name": "base@2"}
    assert "base@2" in error_of(alice_client.delete(url))["message"]


def test_filters_by_state_in_any_case_and_by_text(alice_client: APIClient, world: World) -> None:
    alice_client.post(URL, body_of(world, name="saved", start=False), "json")
    assert names(alice_client, URL, {}) == ["saved", "tune"]
    assert names(alice_client, URL, {"state": "pending"}) == ["tune"]
    assert names(alice_client, URL, {"state": "FAILED"}) == []
    assert names(alice_client, URL, {"search": "sav"}) == ["saved"]
    assert error_of(alice_client.get(URL, {"state": "nowhere"}))["code"] == "not_a_choice"


def test_lists_take_the_same_number_of_queries_however_long(
    alice_client: APIClient, alice: Actor, world: World, django_assert_num_queries: Callable[[int], Any]
) -> None:
    url = f"{URL}/{world.task.pk}"
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(2):
            alice_client.get(URL)
        for part in ("runs", "events"):
            with django_assert_num_queries(3):
                alice_client.get(f"{url}/{part}")
        make_task(alice, world.base, world.dataset_version, f"more {number}")
        alice_client.post(f"{url}/stop")
        alice_client.post(f"{url}/retry")


def test_a_task_is_estimated_without_being_made(
    alice_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 1000}
    (world.base.path / "config.json").write_text(json.dumps(config))
    order = {
        "recipe": "sft", "method": "lora", "base_model": str(world.base.pk),
        "train_dataset": str(world.dataset_version.pk),
    }  # fmt: skip
    before = alice_client.get("/api/v1/fine-tune-tasks").json()
    found = alice_client.post("/api/v1/fine-tune-tasks/estimate", order, "json")
    assert found.status_code == 200, found.content
    assert found.json()["verdict"] == "fits"
    assert found.json()["memory_mib"]["low"] < found.json()["memory_mib"]["high"]
    assert alice_client.get("/api/v1/fine-tune-tasks").json() == before
    assert charlie_client.post("/api/v1/fine-tune-tasks/estimate", order, "json").status_code == 404


def test_the_estimate_of_a_new_model_reads_the_tokenizer_of_its_owner_only(
    alice: Actor, alice_client: APIClient, charlie_client: APIClient, world: World, spooled: Any
) -> None:
    vocab = {f"w{number}": number for number in range(40_000)}
    put_tree(alice, spooled, {"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}})})
    text = "".join(json.dumps({"text": "The piano has keys. " * 20 + str(number)}) + "\n" for number in range(20))
    data = str(make_dataset(alice, "text", text).pk)
    order = {"recipe": "pretrain", "method": "full", "train_dataset": data}
    own = {**order, "tokenizer": "private/tokenizer.json"}
    plain, large = (alice_client.post("/api/v1/fine-tune-tasks/estimate", each, "json").json() for each in (order, own))
    assert large["memory_mib"]["expected"] > plain["memory_mib"]["expected"] + 50
    assert charlie_client.post("/api/v1/fine-tune-tasks/estimate", own, "json").status_code == 404
