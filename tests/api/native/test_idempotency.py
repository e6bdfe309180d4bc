"""Idempotency-Key: what is sent twice happens once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db.models import QuerySet
from django.utils import timezone
from rest_framework.test import APIClient

from clavier.api.common import idempotency
from clavier.api.common.models import IdempotentRequest
from datasets_app.models import Dataset
from finetune_app.models import FineTuneTask
from tests.api.native.conftest import World, error_of

URL = "/api/v1/datasets"


def create(client: APIClient, key: str, name: str = "faq", **body: Any) -> Any:
    """A create with a key."""
    return client.post(URL, {"name": name, **body}, "json", HTTP_IDEMPOTENCY_KEY=key)


def test_the_second_copy_gets_the_first_answer(alice_client: APIClient) -> None:
    first, second = create(alice_client, "k"), create(alice_client, "k")
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert "Idempotent-Replay" not in first
    assert second["Idempotent-Replay"] == "true"
    assert Dataset.objects.count() == 1


def test_the_same_json_in_another_order_is_the_same_body(alice_client: APIClient) -> None:
    bodies = ['{"name": "a", "task": "b"}', '{ "task":"b","name":"a" }']
    answers = [alice_client.generic("POST", URL, body, "application/json", HTTP_IDEMPOTENCY_KEY="k") for body in bodies]
    assert answers[0].json() == answers[1].json()


def test_another_body_or_route_with_the_same_key_is_a_409(alice_client: APIClient) -> None:
    create(alice_client, "k")
    assert error_of(create(alice_client, "k", "other"))["code"] == "idempotency_mismatch"
    response = alice_client.post("/api/v1/api-keys", {"name": "faq"}, "json", HTTP_IDEMPOTENCY_KEY="k")
    assert (response.status_code, error_of(response)["code"]) == (409, "idempotency_mismatch")


def test_keys_of_others_do_not_meet(alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient) -> None:
    create(alice_client, "k")
    assert error_of(create(bob_client, "k"))["code"] == "already_exists", "the same tenant has a data set of that name"
    assert create(charlie_client, "k").status_code == 201


def test_a_refused_request_may_be_sent_again_with_its_key(alice_client: APIClient) -> None:
    dataset = create(alice_client, "a").json()
    assert create(alice_client, "b").status_code == 409
    assert alice_client.delete(f"{URL}/{dataset['id']}").status_code == 204
    assert create(alice_client, "b").status_code == 201


def test_a_copy_that_comes_meanwhile_is_told_to_come_back(
    alice_client: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_S", 0.0)
    create(alice_client, "k")
    IdempotentRequest.objects.update(status=None, response=None)
    response = create(alice_client, "k")
    assert (response.status_code, error_of(response)["code"]) == (409, "busy")
    assert response["Retry-After"] == "1"


def test_a_claim_whose_process_died_is_taken_over(alice_client: APIClient) -> None:
    create(alice_client, "k")
    Dataset.objects.all().delete()
    long_ago = timezone.now() - timedelta(minutes=11)
    IdempotentRequest.objects.update(status=None, response=None, created_at=long_ago)
    assert create(alice_client, "k").status_code == 201


def test_a_key_is_forgotten_after_a_day(alice_client: APIClient) -> None:
    create(alice_client, "k")
    IdempotentRequest.objects.update(created_at=timezone.now() - timedelta(hours=25))
    assert error_of(create(alice_client, "k"))["code"] == "already_exists", "it was taken for a new request"
    assert not IdempotentRequest.objects.exists()


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "中"])
def test_a_key_that_is_none_is_refused(alice_client: APIClient, key: str) -> None:
    error = error_of(create(alice_client, key))
    assert (error["code"], error["field"]) == ("bad_header", "Idempotency-Key")


def test_a_task_and_its_answer_are_one_transaction(
    alice_client: APIClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(idempotency, "store", broken)
    body = {
        "name": "twice", "recipe": "sft", "method": "lora", "base_model": str(world.base.pk),
        "train_dataset": str(world.dataset_version.pk),
    }  # fmt: skip
    response = alice_client.post("/api/v1/fine-tune-tasks", body, "json", HTTP_IDEMPOTENCY_KEY="k")
    assert response.status_code == 500
    assert not FineTuneTask.objects.filter(name="twice").exists()
    assert not IdempotentRequest.objects.exists()


def test_a_copy_that_comes_meanwhile_waits_for_the_answer_of_the_first(
    alice_client: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(alice_client, "k").json()
    IdempotentRequest.objects.update(status=None, response=None)

    def first_copy_answers(seconds: float) -> None:
        IdempotentRequest.objects.update(status=201, response=first)

    monkeypatch.setattr("clavier.api.common.idempotency.time.sleep", first_copy_answers)
    response = create(alice_client, "k")
    assert (response.status_code, response.json()) == (201, first)
    assert response["Idempotent-Replay"] == "true"


def test_of_two_copies_that_both_saw_no_claim_the_second_gets_the_answer_of_the_first(
    alice_client: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(alice_client, "k").json()
    look, blind = QuerySet.first, [True]

    def blind_once(rows: QuerySet[Any]) -> Any:
        return None if rows.model is IdempotentRequest and blind and blind.pop() else look(rows)

    monkeypatch.setattr(QuerySet, "first", blind_once)
    assert create(alice_client, "k").json() == first
    assert not blind
    assert Dataset.objects.count() == 1
