"""Every recipe through the real API, worker and executor: a base, then all that can be made of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from clavier.demo.client import Client, StepFailed
from tests.live.conftest import Platform
from tests.programs.recipes import PAIRS, PREFERENCES, TEXTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHAPE = {
    "vocab_size": 600,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
FAST = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
RL = {"max_steps": 3, "rollout_batch_size": 4, "max_completion_length": 8, "logging_steps": 1}


class Workshop:
    """Uploads rows and trains with them."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.base = ""

    def data(self, name: str, rows: Any) -> str:
        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(self.client.upload_dataset(name, file)["newest_version"]["id"])

    def train(self, name: str, recipe: str, data: str, **more: Any) -> dict[str, Any]:
        """The model version that a task has made, and what was measured on the way under ``events``."""
        method = more.pop("method", "full" if recipe == "pretrain" else "lora")
        body = {"name": name, "recipe": recipe, "method": method, "train_dataset": data, **more}
        task = self.client.post("/api/v1/fine-tune-tasks", body)
        path = f"/api/v1/fine-tune-tasks/{task['id']}"
        self.client.wait_for_run(path, lambda _: None, limit_s=300)
        version = self.client.get(path)["output_version"]
        found = self.client.get(f"/api/v1/model-versions/{version['id']}")
        return {**found, "events": self.client.get(f"{path}/metrics", offset=0)["items"]}

    def wait_for_service(self, service_id: str) -> None:
        """Until every replica answers. Raises TimeoutError."""
        for _ in range(600):
            service = self.client.get(f"/api/v1/services/{service_id}")
            if service["state"] == "READY":
                return
            time.sleep(0.2)
        raise TimeoutError(service)


@pytest.fixture(scope="module")
def workshop(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(platform.client_of(platform.create_user("maker")["api_key"]), tmp_path_factory.mktemp("rows"))
    texts = made.data(
        "texts", [{"text": row["text"] + " " + pair["target"]} for row, pair in zip(TEXTS, PAIRS, strict=True)] * 30
    )
    knobs = {
        **SHAPE,
        "num_key_value_heads": 2,
        "sequence_length": 32,
        "max_steps": 10,
        "per_device_train_batch_size": 4,
    }
    made.base = made.train("base", "pretrain", texts, hyperparameters=knobs)["id"]
    return made


def test_preferences_make_a_model_that_can_be_served(workshop: Workshop) -> None:
    pairs = workshop.data("preferences", PREFERENCES)
    made = workshop.train("preferred", "preference", pairs, base_model=workshop.base, hyperparameters=FAST)
    assert (made["format"], made["task"]) == ("adapter", "generation")
    assert any("train/reward_margin" in event for event in made["events"])


def test_a_reward_model_teaches_and_scores_as_a_service(workshop: Workshop) -> None:
    pairs = workshop.data("judgements", PREFERENCES)
    scorer = workshop.train("scorer", "reward", pairs, base_model=workshop.base, hyperparameters=FAST)
    assert scorer["task"] == "reward"
    service = workshop.client.post("/api/v1/services", {"name": "scorer", "model_version": scorer["id"]})
    question = {"role": "user", "content": "Keys?"}
    replies = [[question, {"role": "assistant", "content": reply}] for reply in ("88", "Many")]
    rewards = {"ppo": {"reward_model": scorer["id"]}, "grpo": {"reward_service": "scorer"}}
    for algorithm, more in (("ppo", {}), ("grpo", {"num_generations": 2})):
        made = workshop.train(
            f"taught-{algorithm}", "rl", pairs, base_model=workshop.base, **rewards[algorithm],
            hyperparameters={**RL, **more, "algorithm": algorithm},
        )  # fmt: skip
        assert made["task"] == "generation"
        assert {"reward/mean", "kl_divergence", "episode_length"} <= made["metrics"].keys()
    workshop.wait_for_service(service["id"])
    told = workshop.client.post("/openai/v1/pooling", {"model": "scorer", "messages": replies})
    first, second = (row["data"][0] for row in told["data"])
    assert first != second
    assert told["usage"]["prompt_tokens"] > 0
    with pytest.raises(StepFailed, match="ask it by POST /openai/v1/pooling"):
        workshop.client.post("/openai/v1/chat/completions", {"model": "scorer", "messages": [question]})


def test_a_classifier_and_a_translator_say_what_they_are(workshop: Workshop) -> None:
    texts = workshop.data("labelled", TEXTS)
    made = workshop.train(
        "classes", "classify", texts, base_model=workshop.base, validation_dataset=texts, hyperparameters=FAST
    )
    assert made["task"] == "classification"
    assert {"eval/accuracy", "eval/f1"} <= made["metrics"].keys()
    pairs = workshop.data("translations", PAIRS)
    made = workshop.train(
        "translator", "seq2seq", pairs, base_model=workshop.base, validation_dataset=pairs, hyperparameters=FAST
    )
    assert made["task"] == "generation"
    assert {"eval/rougeL", "eval/bleu", "eval/chrf"} <= made["metrics"].keys()


def test_a_quantized_base_takes_an_adapter(workshop: Workshop) -> None:
    pairs = workshop.data("answers", [{"question": row["source"], "answer": row["target"]} for row in PAIRS])
    made = workshop.train("quantized", "sft", pairs, method="qlora", base_model=workshop.base, hyperparameters=FAST)
    assert made["format"] == "adapter"
