"""The four paradigms of document 003 with its own rows and YAML (sizes apart), through the real API and worker."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import requests

from clavier.demo.client import Client
from tests.live.conftest import Platform
from tests.programs.test_own_tokenizer import sentencepiece

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONVERSATIONS = [
    {"conversation_id": "demo-001", "task_tags": ["qa"], "metadata": {"language": "zh"},
     "messages": [{"role": "user", "content": "指令"}, {"role": "assistant", "content": "回答"}]},
    {"conversation_id": "demo-002", "system_prompt": "简短回答", "input_template": "问题: {input}",
     "messages": [{"role": "user", "content": "请总结"}, {"role": "assistant", "content": "总结内容"}]},
]  # fmt: skip
LABELLED = [
    {"conversation_id": f"lora-{number}", "target_modules": ["q_proj", "v_proj"], "rank": 4,
     "messages": [{"role": "user", "content": "写一封感谢信"}, {"role": "assistant", "content": "亲爱的团队..."}]}
    for number in range(4)
]  # fmt: skip
JUDGED = [
    {
        "prompt": "请写一首短诗",
        "chosen": "春风拂面...",
        "rejected": "我不知道",
        "metadata": {"source": "beta-feedback"},
    },
    {"prompt": "翻译：Hello", "responses": [{"content": "你好", "score": 0.9}, {"content": "您好", "score": 0.7}]},
]
CORPUS = [
    {"doc_id": f"pt-{number}", "text": "大模型预训练语料第一段... " * 20, "metadata": {"domain": "finance"}}
    for number in range(20)
]
SFT = """task_type: sft
model_name: llama2-7b
dataset: datasets/sft_dataset.jsonl
validation_dataset: datasets/sft_dataset.jsonl
max_seq_length: 2048
per_device_train_batch_size: 4
learning_rate: 2e-5
num_train_epochs: 3
output_model_name: qwen-7b-sft
logging_steps: 1
"""
REWARD = """task_type: reward
model_name: llama2-7b
dataset: datasets/rl_preference.jsonl
output_model_name: qwen-7b-rm
max_steps: 2
"""
RL = """task_type: rl
algorithm: ppo
policy_model: qwen-7b-sft
reward_model: checkpoints/qwen-7b-rm
dataset: datasets/rl_preference.jsonl
rollout_batch_size: 16
update_epochs: 4
kl_target: 0.1
max_steps: 2
max_completion_length: 8
logging_steps: 1
"""
LORA = """task_type: lora
base_model: llama2-7b
dataset: datasets/lora_demo.jsonl
validation_dataset: datasets/lora_demo.jsonl
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
train_batch_size: 64
gradient_accumulation_steps: 4
use_8bit: true
peft_target_modules: [q_proj, k_proj]
bnb_4bit_quant_type: nf4
max_steps: 2
logging_steps: 1
"""
PRETRAIN = """task_type: pretrain
model_name: llama2-7b
dataset: datasets/pretrain_corpus.jsonl
sequence_length: 256
global_batch_size: 8
learning_rate: 3e-4
warmup_ratio: 0.01
tokenizer: configs/tokenizer.model
max_steps: 4
save_steps: 2
logging_steps: 1
"""


class Author:
    """Sends documents' files and reads what came of them."""

    def __init__(self, client: Client, key: str) -> None:
        self.client, self.headers = client, {"Authorization": f"Bearer {key}"}

    def data(self, folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
        """A data set named after the file."""
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        self.client.upload_dataset(name, file)

    def train(self, config: str) -> tuple[set[str], dict[str, bytes], dict[str, Any]]:
        """The names of what was measured, the files of the new version with their content, and the task."""
        task = self.client.post("/api/v1/fine-tune-tasks", {"config": config})
        path = f"/api/v1/fine-tune-tasks/{task['id']}"
        self.client.wait_for_run(path, lambda _: None, limit_s=300)
        task = self.client.get(path)
        events = self.client.get(f"{path}/metrics", offset=0)["items"]
        version = task["output_version"]["id"]
        download = f"{self.client.origin}/api/v1/model-versions/{version}/download"
        packed = requests.get(download, headers=self.headers, timeout=60)
        with tarfile.open(fileobj=io.BytesIO(packed.content)) as archive:
            members = [(one.name.rpartition("/")[2], archive.extractfile(one)) for one in archive if one.isfile()]
            files = {name: stream.read() for name, stream in members if stream is not None}
        return {name for event in events for name in event}, files, {**task, "events": events}


@pytest.fixture(scope="module")
def author(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Author:
    """With the four data sets, a SentencePiece tokenizer and the pretrained model that the others start from."""
    key, folder = platform.create_user("author")["api_key"], tmp_path_factory.mktemp("documents")
    made = Author(platform.client_of(key), key)
    for name, rows in (
        ("sft_dataset", CONVERSATIONS * 2), ("rl_preference", JUDGED * 8), ("lora_demo", LABELLED),
        ("pretrain_corpus", CORPUS),
    ):  # fmt: skip
        made.data(folder, name, rows)
    made.client.post("/api/v1/files/folders", {"name": "configs"})
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -1.0, 1)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    files = {"file": ("tokenizer.model", sentencepiece(1, pieces=pieces))}
    sent = requests.post(
        f"{platform.origin}/api/v1/files", data={"folder": "configs"}, files=files, headers=made.headers, timeout=30
    )
    assert sent.status_code == 201, sent.text
    return made


@pytest.fixture(scope="module")
def base(author: Author) -> tuple[set[str], dict[str, bytes], dict[str, Any]]:
    """The pretrained model."""
    return author.train(PRETRAIN)


def test_pretraining_measures_speed_and_clipping_and_keeps_the_tokenizer(author: Author, base: Any) -> None:
    measured, files, task = base
    assert {"train/loss", "train/tokens_per_second", "train/clipped_share"} <= measured
    assert {"model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"} <= set(files)
    knobs = task["hyperparameters"]
    assert knobs["per_device_train_batch_size"] * knobs["gradient_accumulation_steps"] == 8
    assert task["tokenizer"] == "private/configs/tokenizer.model"
    assert [event["path"] for event in task["events"] if event["kind"] == "checkpoint"] == [
        "checkpoints/step-00000002",
        "checkpoints/step-00000004",
    ]


def test_sft_measures_rouge_and_makes_whole_weights(author: Author, base: Any) -> None:
    measured, files, task = author.train(SFT)
    assert {"train/loss", "eval/loss", "eval/rougeL"} <= measured
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert task["hyperparameters"]["learning_rate"] == 2e-5


def test_ppo_takes_the_tuned_policy_and_the_reward_model_by_its_path(author: Author, base: Any) -> None:
    author.train(SFT.replace("num_train_epochs: 3", "max_steps: 1"))
    author.train(REWARD)
    measured, files, task = author.train(RL)
    assert {"reward/mean", "kl_divergence", "episode_length"} <= measured
    assert "model.safetensors" in files
    assert task["base_model"]["name"].startswith("qwen-7b-sft@")
    assert task["reward_model"]["name"] == "qwen-7b-rm@1"


def test_lora_follows_the_labels_of_its_rows(author: Author, base: Any) -> None:
    measured, files, task = author.train(LORA)
    assert {"train/loss", "eval/loss", "weights/norm"} <= measured
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert (task["method"], task["hyperparameters"]["lora_r"]) == ("qlora", 8)
    adapter = json.loads(files["adapter_config.json"])
    assert (adapter["r"], sorted(adapter["target_modules"])) == (4, ["q_proj", "v_proj"])
