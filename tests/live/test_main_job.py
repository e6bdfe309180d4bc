"""The promise of the README, kept on a real platform: nothing here is scripted or mocked."""

from __future__ import annotations

import json

import pytest
import requests

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("live"), pytest.mark.timeout(600)]


def test_the_demo_teaches_a_model_what_its_base_did_not_know(demo):
    assert demo["base_exact_match"] < 0.1
    assert demo["tuned_exact_match"] >= 0.9
    assert demo["error"] == ""
    assert demo["train_loss"][1] < demo["train_loss"][0]
    assert sum(step["seconds"] for step in demo["steps"]) < 300
    assert len(demo["questions"]) == 3


def test_the_served_model_answers_as_it_was_judged_with_and_without_streaming(platform, demo):
    client = platform.client_of(demo["api_key"])
    asked = demo["questions"][0]
    assert client.chat(demo["service"], asked["question"]).strip() == asked["tuned"]
    body = {
        "model": demo["service"], "stream": True, "temperature": 0, "max_tokens": 64,
        "messages": [{"role": "user", "content": asked["question"]}],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {demo['api_key']}"}
    answer = requests.post(f"{platform.origin}/openai/v1/chat/completions", json=body, headers=headers, timeout=60)
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(deltas).strip() == asked["tuned"]
    assert len(deltas) > 2


def test_charlie_can_not_ask_the_model_of_the_demo(platform, demo):
    key = platform.create_user("charlie")["api_key"]
    body = {"model": demo["service"], "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {key}"}
    answer = requests.post(f"{platform.origin}/openai/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
