"""fine-tune-tasks from a YAML training configuration: as text, as a file of the user's, as a body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from clavier.files.services import create_folder, upload_file
from datasets_app.services import create_dataset_with_file
from finetune_app.models import FineTuneTask, HyperparameterSearch
from finetune_app.services import recipe_spec
from inference_app.services import create_service
from models_app.models import ModelVersion
from tests.api.native.conftest import World, error_of, make_dataset, make_model, make_task
from tests.worlds import make_model_version

URL = "/api/v1/fine-tune-tasks"
SFT = """task_type: sft
model_name: base
dataset: datasets/faq.jsonl
max_seq_length: 2048
per_device_train_batch_size: 4
learning_rate: 2e-5
num_train_epochs: 3
"""
LORA = "task_type: lora\nbase_model: base@1\ndataset: faq\nvalidation_dataset: ./datasets//faq.jsonl\nlora_r: 8\n"
TUNED = LORA + "hyperparameter_tuning:\n  enabled: true\n  trials: 20\n  metric: validation_loss\n"
TEXTS = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(5))
ROWS = "".join(json.dumps({"question": "q", "answer": f"{n}"}) + "\n" for n in range(3)).encode()
PAIRS = "".join(json.dumps({"prompt": f"p{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(5))


def made_of(client: APIClient, config: str, **beside: Any) -> dict[str, Any]:
    """The task that a configuration makes."""
    response = client.post(URL, {"config": config, **beside}, "json")
    assert response.status_code == 201, response.content
    task: dict[str, Any] = response.json()
    return task


def test_a_documented_file_makes_a_task_and_stays_with_it(alice_client: APIClient, world: World) -> None:
    task = made_of(alice_client, SFT, name="from-yaml", resources={"memory_mib": 2048})
    assert (task["name"], task["recipe"], task["method"], task["state"]) == ("from-yaml", "sft", "full", "PENDING")
    assert (task["base_model"]["name"], task["train_dataset"]["name"]) == ("base@1", "faq v1")
    assert (task["hyperparameters"]["learning_rate"], task["hyperparameters"]["max_seq_length"]) == (2e-5, 2048)
    assert (task["has_config"], task["search"]) == (True, None)
    download = alice_client.get(f"{URL}/{task['id']}/config")
    assert (download.content.decode(), download["Content-Type"]) == (SFT, "application/yaml; charset=utf-8")
    assert 'filename="from-yaml.yaml"' in download["Content-Disposition"]


def test_a_body_of_yaml_is_a_configuration(alice_client: APIClient, world: World) -> None:
    response = alice_client.post(URL, "name: yaml-body\n" + SFT, content_type="application/yaml")
    assert response.status_code == 201, response.content
    assert response.json()["name"] == "yaml-body"
    unread = alice_client.post(URL, b"\xff", content_type="application/yaml")
    assert (unread.status_code, error_of(unread)["code"]) == (400, "bad_encoding")


def test_a_configuration_may_be_a_file_of_the_caller(
    alice_client: APIClient, bob_client: APIClient, alice: Actor, world: World
) -> None:
    create_folder(actor=alice, area="private", folder="", name="configs")
    upload_file(
        actor=alice, area="private", folder="configs", name="sft.yaml", upload=SimpleUploadedFile("x", SFT.encode())
    )
    for path in ("configs/sft.yaml", "private/configs/sft.yaml"):
        task = alice_client.post(URL, {"config_file": path, "start": False}, "json").json()
        assert (task["name"], task["state"], task["has_config"]) == ("sft-base", None, True)
    refused = bob_client.post(URL, {"config_file": "configs/sft.yaml"}, "json")
    assert (refused.status_code, error_of(refused)["field"]) == (404, "config_file")
    both = alice_client.post(URL, {"config_file": "configs/sft.yaml", "config": SFT}, "json")
    assert error_of(both)["code"] == "conflicting_fields"


@pytest.mark.parametrize(
    ("config", "status", "code", "field"),
    [
        (SFT.replace("base", "nobody"), 404, "not_found", "model_name"),
        (SFT.replace("faq", "nothing"), 404, "not_found", "dataset"),
        (SFT.replace("datasets/faq.jsonl", "../faq.jsonl"), 400, "path_outside_root", "dataset"),
        (SFT.replace(": base", ": /etc/base"), 400, "path_outside_root", "model_name"),
        ("task_type: sft\ndataset: faq\n", 400, "required", "model_name"),
        ("task_type: sft\nmodel_name: base\n", 400, "required", "dataset"),
        (SFT + "lerning_rate: 1\n", 400, "unknown_field", "lerning_rate"),
        ("task_type: [", 400, "malformed_yaml", "config"),
        (TUNED.replace("validation_dataset: ./datasets//faq.jsonl\n", ""), 400, "required", "validation_dataset"),
    ],
)
def test_what_a_file_gets_wrong_is_named_as_it_has_it(
    alice_client: APIClient, world: World, config: str, status: int, code: str, field: str
) -> None:
    error = error_of(response := alice_client.post(URL, {"config": config}, "json"))
    assert (response.status_code, error["code"], error["field"]) == (status, code, field)
    assert len(alice_client.get(URL).json()["items"]) == 1


def test_nothing_beside_a_configuration_says_what_it_says(alice_client: APIClient, world: World) -> None:
    refused = alice_client.post(URL, {"config": SFT, "recipe": "sft"}, "json")
    assert (refused.status_code, error_of(refused)["field"]) == (400, "recipe")


def test_a_file_that_tunes_makes_a_search(alice_client: APIClient, charlie_client: APIClient, world: World) -> None:
    task = made_of(alice_client, TUNED, name="tuned")
    search = HyperparameterSearch.objects.get(name="tuned")
    assert task["search"] == {"id": str(search.pk), "name": "tuned"}
    assert (search.num_trials, search.metric, search.maximize, search.task["config"]) == (20, "eval/loss", False, TUNED)
    assert search.space["lora_r"] == {"choices": [8, 16, 32]}
    assert (search.space["learning_rate"]["low"], search.space["learning_rate"]["log"]) == (2e-5, True)
    assert alice_client.get(f"{URL}/{task['id']}/config").content.decode() == TUNED
    assert charlie_client.get(f"{URL}/{task['id']}/config").status_code == 404
    again = alice_client.post(URL, {"config": TUNED, "start": False}, "json")
    assert (again.status_code, error_of(again)["field"]) == (400, "start")


def test_a_search_tries_the_space_of_its_file(alice_client: APIClient, world: World) -> None:
    made_of(alice_client, TUNED + "  space: {LoRA_Alpha: {choices: [8, 16]}}\n", name="own-space")
    assert HyperparameterSearch.objects.get(name="own-space").space == {"lora_alpha": {"choices": [8.0, 16.0]}}


def test_a_distributed_file_makes_a_task_of_several_processes(alice_client: APIClient, world: World) -> None:
    config = SFT + "training: {distributed: {enabled: true, num_gpus: 4, strategy: FSDP}}\n"
    task = made_of(alice_client, config, start=False)
    assert task["resources"]["gpus"] == 4
    assert task["hyperparameters"]["distributed_strategy"] == "fsdp"
    assert recipe_spec(FineTuneTask.objects.get(pk=task["id"])).parameters["num_processes"] == 4
    refused = alice_client.post(URL, {"config": config, "resources": {"gpus": 2}}, "json")
    assert (error_of(refused)["code"], error_of(refused)["field"]) == ("conflicting_fields", "resources.gpus")


def test_a_pretraining_makes_a_new_model_or_goes_on_with_one(
    alice_client: APIClient, alice: Actor, world: World
) -> None:
    make_dataset(alice, "pretrain_corpus", TEXTS)
    config = "task_type: pretrain\nmodel_name: {}\ndataset: datasets/pretrain_corpus.jsonl\nglobal_batch_size: 16\n"
    new = made_of(alice_client, config.format("llama2-7b"), start=False)
    assert (new["base_model"], new["output_model_name"], new["name"]) == (None, "llama2-7b", "pretrain-llama2-7b")
    continued = made_of(alice_client, config.format("base"), start=False)
    assert continued["base_model"]["name"] == "base@1"


def test_pairs_are_preference_learning_unless_the_file_says_how(
    alice_client: APIClient, alice: Actor, world: World
) -> None:
    make_dataset(alice, "rl_preference", PAIRS)
    ModelVersion.objects.filter(pk=make_model(alice, "qwen-7b-rm").pk).update(task="reward")
    config = "task_type: rl\npolicy_model: base\ndataset: datasets/rl_preference.jsonl\n"
    assert made_of(alice_client, config, start=False)["recipe"] == "preference"
    ppo = "algorithm: ppo\nreward_model: checkpoints/qwen-7b-rm\nrollout_batch_size: 16\nkl_target: 0.1\n"
    task = made_of(alice_client, config + ppo, start=False)
    assert (task["recipe"], task["reward_model"]["name"]) == ("rl", "qwen-7b-rm@1")


def test_the_reward_of_a_file_may_be_a_service(
    alice_client: APIClient, charlie_client: APIClient, alice: Actor, world: World
) -> None:
    make_dataset(alice, "rl_preference", PAIRS)
    scorers = [make_model_version(alice, "scorer", task="reward") for _ in range(2)]
    create_service(actor=alice, name="judge", model_version=scorers[0].pk, start=False)
    create_service(actor=alice, name="scorer", model_version=scorers[0].pk, start=False)
    create_service(actor=alice, name="writer", model_version=world.base.pk, start=False)
    config = "task_type: rl\npolicy_model: base\ndataset: rl_preference\n"
    for reward, version in (
        ("reward_service: judge@1", 0), ("reward_model: judge", 0), ("reward_model: judge@1", 0),
        ("reward_model: scorer", 1), ("reward_service: scorer", 0),
    ):  # fmt: skip
        task = made_of(alice_client, f"{config}{reward}\n", start=False)
        assert (task["recipe"], task["reward_model"]["id"]) == ("rl", str(scorers[version].pk))
    for reward, status, code, field in (
        ("reward_service: writer", 400, "wrong_task", "reward_service"),
        ("reward_model: writer", 400, "wrong_task", "reward_model"),
        ("reward_service: none", 404, "model_not_found", "reward_service"),
        ("reward_model: none", 404, "not_found", "reward_model"),
        ("reward_service: judge\nreward_model: scorer", 400, "conflicting_fields", "reward_service"),
    ):
        refused = alice_client.post(URL, {"config": f"{config}{reward}\n"}, "json")
        assert (refused.status_code, error_of(refused)["code"], error_of(refused)["field"]) == (status, code, field)
    assert charlie_client.post(URL, {"config": f"{config}reward_model: judge\n"}, "json").status_code == 404


def test_a_name_that_two_uploads_have_is_no_guess(alice_client: APIClient, alice: Actor, world: World) -> None:
    for name in ("one", "two"):
        upload = SimpleUploadedFile("same.jsonl", ROWS)
        create_dataset_with_file(actor=alice, name=name, upload=upload, file_name="same.jsonl")
    refused = alice_client.post(URL, {"config": SFT.replace("faq.jsonl", "same.jsonl")}, "json")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "ambiguous")


def test_charlie_can_not_name_what_alice_has(charlie_client: APIClient, charlie: Actor, world: World) -> None:
    refused = charlie_client.post(URL, {"config": SFT}, "json")
    assert refused.status_code == 404
    assert "base" in error_of(refused)["message"]
    by_id = charlie_client.post(URL, {"config": SFT.replace(": base", f": {world.base.pk}")}, "json")
    assert (by_id.status_code, error_of(by_id)["field"]) == (404, "model_name")
    assert FineTuneTask.objects.filter(tenant_id=charlie.tenant_id).count() == 0
    assert charlie_client.get(f"{URL}/{world.task.pk}/config").status_code == 404


def test_a_task_of_no_configuration_has_none(alice: Actor, alice_client: APIClient, world: World) -> None:
    task = make_task(alice, world.base, world.dataset_version, start=False)
    missing = alice_client.get(f"{URL}/{task.pk}/config")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "no_config")


PRETRAIN = "task_type: pretrain\nmodel_name: {}\ndataset: corpus\ntokenizer: configs/tokenizer.{}\n"


def put(actor: Actor, name: str, content: bytes) -> None:
    """A file in the folder ``configs``."""
    upload_file(actor=actor, area="private", folder="configs", name=name, upload=SimpleUploadedFile("x", content))


def test_a_new_model_takes_the_tokenizer_of_its_file(alice_client: APIClient, alice: Actor, world: World) -> None:
    make_dataset(alice, "corpus", TEXTS)
    create_folder(actor=alice, area="private", folder="", name="configs")
    put(alice, "tokenizer.model", b"pieces")
    task = made_of(alice_client, PRETRAIN.format("llama2-7b", "model"))
    assert task["tokenizer"] == "private/configs/tokenizer.model"
    spec = FineTuneTask.objects.get(pk=task["id"]).run.spec
    assert spec["parameters"]["tokenizer"].endswith("/private/configs/tokenizer.model")
    assert spec["parameters"]["tokenizer"] in [mount["source"] for mount in spec["mounts"]]
    assert spec["parameters"]["lineage"]["tokenizer"] == "private/configs/tokenizer.model"


def test_a_tokenizer_contradicts_no_base_model(alice_client: APIClient, alice: Actor, world: World) -> None:
    make_dataset(alice, "corpus", TEXTS)
    create_folder(actor=alice, area="private", folder="", name="configs")
    put(alice, "tokenizer.json", b"{}")
    other = alice_client.post(URL, {"config": PRETRAIN.format("base", "json")}, "json")
    assert (error_of(other)["code"], error_of(other)["field"]) == ("conflicting_fields", "tokenizer")
    (world.base.path / "tokenizer.json").write_bytes(b"{}")
    assert made_of(alice_client, PRETRAIN.format("base", "json"), start=False)["tokenizer"] == ""


@pytest.mark.parametrize(
    ("config", "status", "code"),
    [
        (PRETRAIN.format("new", "model"), 404, "not_found"),
        (PRETRAIN.format("new", "txt").replace("configs/", "data/训练."), 404, "not_found"),
        (PRETRAIN.format("new", "model").replace("configs/tokenizer.model", "data/训练.txt"), 400, "bad_value"),
        (PRETRAIN.format("new", "model").replace("configs/tokenizer.model", "data"), 400, "bad_value"),
        (SFT + "tokenizer: data\n", 400, "unknown_field"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    alice_client: APIClient, alice: Actor, world: World, config: str, status: int, code: str
) -> None:
    make_dataset(alice, "corpus", TEXTS)
    refused = alice_client.post(URL, {"config": config}, "json")
    assert (refused.status_code, error_of(refused)["code"], error_of(refused)["field"]) == (status, code, "tokenizer")


def test_bob_trains_with_no_private_tokenizer_of_alice(bob_client: APIClient, alice: Actor, world: World) -> None:
    make_dataset(alice, "corpus", TEXTS)
    create_folder(actor=alice, area="private", folder="", name="configs")
    put(alice, "tokenizer.model", b"pieces")
    refused = bob_client.post(URL, {"config": PRETRAIN.format("new", "model")}, "json")
    assert (refused.status_code, error_of(refused)["field"]) == (404, "tokenizer")
