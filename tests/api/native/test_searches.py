"""hyperparameter-searches: what a search takes beside its space."""

from __future__ import annotations

import json
from typing import Any

from rest_framework.test import APIClient

from clavier.core.actor import Actor
from finetune_app.models import FineTuneTask
from tests.api.native.conftest import World, make_dataset
from tests.worlds import put_tree

URL = "/api/v1/hyperparameter-searches"


def test_the_trials_of_a_search_make_models_with_the_users_own_tokenizer(
    alice: Actor, alice_client: APIClient, charlie_client: APIClient, world: World, spooled: Any
) -> None:
    put_tree(alice, spooled, {"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}})})
    text = "".join(json.dumps({"text": f"The piano has {number} keys."}) + "\n" for number in range(5))
    order = {
        "name": "rates", "recipe": "pretrain", "method": "full", "num_trials": 1, "metric": "train/loss",
        "train_dataset": str(make_dataset(alice, "text", text).pk), "tokenizer": "private/tokenizer.json",
        "space": {"learning_rate": {"low": 1e-4, "high": 1e-2}},
    }  # fmt: skip
    assert charlie_client.post(URL, order, "json").status_code == 404
    missing = alice_client.post(URL, {**order, "tokenizer": "private/other.json"}, "json")
    assert (missing.status_code, missing.json()["error"]["field"]) == (404, "tokenizer")
    made = alice_client.post(URL, order, "json")
    assert made.status_code == 201, made.content
    assert made.json()["task"]["tokenizer"] == "private/tokenizer.json"
    assert FineTuneTask.objects.get(recipe="pretrain").tokenizer == "private/tokenizer.json"
