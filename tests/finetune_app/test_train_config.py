"""YAML training configurations: the four paradigms as they are documented, and what else a file may say."""

from __future__ import annotations

from typing import Any

import pytest

from clavier.core.errors import Invalid, InvalidFields, TooLarge
from finetune_app.train_config import read_train_config

SFT = """
task_type: sft
model_name: qwen-7b
dataset: datasets/sft_dataset.jsonl
max_seq_length: 2048
per_device_train_batch_size: 4
learning_rate: 2e-5
num_train_epochs: 3
"""
RL = """
task_type: rl
algorithm: ppo
policy_model: qwen-7b-sft
reward_model: qwen-7b-rm
dataset: datasets/rl_preference.jsonl
rollout_batch_size: 16
update_epochs: 4
kl_target: 0.1
"""
LORA = """
task_type: lora
base_model: llama2-7b
dataset: datasets/lora_demo.jsonl
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
train_batch_size: 64
gradient_accumulation_steps: 4
use_8bit: true
peft_target_modules: [q_proj, v_proj]
bnb_4bit_quant_type: nf4
"""
PRETRAIN = """
task_type: pretrain
model_name: llama2-7b
dataset: datasets/pretrain_corpus.jsonl
sequence_length: 4096
global_batch_size: 1024
learning_rate: 3e-4
warmup_ratio: 0.01
tokenizer: configs/tokenizer.model
"""


@pytest.mark.parametrize(
    ("text", "recipe", "names", "knobs"),
    [
        (
            SFT, ("sft", "full"), {"model_name": "qwen-7b", "dataset": "datasets/sft_dataset.jsonl"},
            {"max_seq_length": 2048, "per_device_train_batch_size": 4, "learning_rate": 2e-5, "num_train_epochs": 3.0},
        ),
        (
            RL, ("rl", "full"), {"model_name": "qwen-7b-sft", "reward_model": "qwen-7b-rm"},
            {"algorithm": "ppo", "rollout_batch_size": 16, "update_epochs": 4, "kl_target": 0.1},
        ),
        (
            LORA, ("sft", "qlora"), {"model_name": "llama2-7b"},
            {"lora_r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "per_device_train_batch_size": 64,
             "gradient_accumulation_steps": 4, "quantization_bits": 8, "target_modules": ["q_proj", "v_proj"]},
        ),
        (LORA.replace("use_8bit: true\n", "").replace("bnb_4bit_quant_type: nf4\n", ""), ("sft", "lora"), {}, {}),
        (
            PRETRAIN, ("pretrain", "full"), {"tokenizer": "configs/tokenizer.model"},
            {"sequence_length": 4096, "learning_rate": 3e-4, "warmup_ratio": 0.01, "per_device_train_batch_size": 8,
             "gradient_accumulation_steps": 128},
        ),
        (RL.replace("ppo", "dpo").split("rollout")[0], ("preference", "full"), {}, {"loss_type": "dpo"}),
    ],
)  # fmt: skip
def test_a_documented_file_means_a_recipe(
    text: str, recipe: tuple[str, str], names: dict[str, str], knobs: dict[str, Any]
) -> None:
    config = read_train_config(text)
    assert (config.recipe, config.method) == recipe
    assert config.names.items() >= names.items()
    assert config.hyperparameters.items() >= knobs.items()


def test_advanced_options_are_blocks() -> None:
    config = read_train_config(
        LORA.replace("use_8bit: true", "quantization: {enabled: true, bits: 4, method: qlora}")
        + "gradient_checkpointing: {enabled: true}\n"
        + "hyperparameter_tuning: {enabled: true, trials: 20, metric: validation_loss}\n"
        + "training:\n  distributed: {enabled: true, num_gpus: 2, strategy: ddp}\n"
    )
    assert (config.method, config.hyperparameters["quantization_bits"], config.num_gpus) == ("qlora", 4, 2)
    assert config.hyperparameters["gradient_checkpointing"] is True
    assert config.hyperparameters["distributed_strategy"] == "ddp"
    assert config.search == {"num_trials": 20, "metric": "eval/loss"}


def test_the_parameters_of_a_group_mean_hyperparameters() -> None:
    group = (
        "task_type: sft\nscheduler: cosine\noptimizer: adamw_torch\nint4: true\nloRA_R: 8\nloRA_Alpha: 16\n"
        "loRA_Dropout: 0.1\nlearningRate: 5e-5\nepochs: 2\nblockSize: 512\nbatchSize: 4\nwarmupRatio: 0.1\n"
        "weightDecay: 0.01\ngradAccSteps: 2\ntrainerType: Standard\nPEFT: true\nFP16: false\n"
    )
    config = read_train_config(group)
    assert (config.recipe, config.method) == ("sft", "qlora")
    wanted = {
        "lr_scheduler_type": "cosine", "optim": "adamw", "quantization_bits": 4, "lora_r": 8, "lora_alpha": 16.0,
        "lora_dropout": 0.1, "learning_rate": 5e-5, "num_train_epochs": 2.0, "max_seq_length": 512,
        "per_device_train_batch_size": 4, "warmup_ratio": 0.1, "weight_decay": 0.01, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    assert config.hyperparameters.items() >= wanted.items()
    assert read_train_config(group.replace("int4: true\n", "")).method == "lora"
    with pytest.raises(InvalidFields) as caught:
        read_train_config(group.replace("Standard", "Odd").replace("PEFT", "int8"))
    assert [problem.field for problem in caught.value.problems] == ["int8", "trainerType"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_have_a_strategy(strategy: str) -> None:
    block = f"training: {{distributed: {{enabled: true, num_gpus: 2, strategy: {strategy}}}}}\n"
    config = read_train_config(SFT + block)
    assert (config.num_gpus, config.hyperparameters["distributed_strategy"]) == (2, strategy)


def test_the_global_batch_is_shared_by_the_processes() -> None:
    block = "training: {distributed: {enabled: true, num_gpus: 2}}\nglobal_batch_size: 32\n"
    knobs = read_train_config(SFT + block).hyperparameters
    assert (knobs["per_device_train_batch_size"], knobs["gradient_accumulation_steps"]) == (4, 4)
    pretraining = "task_type: pretrain\nper_device_train_batch_size: 16\n" + block
    assert read_train_config(pretraining).hyperparameters["gradient_accumulation_steps"] == 1
    with pytest.raises(InvalidFields, match="no multiple of per_device_train_batch_size 16 times 2 processes"):
        read_train_config(pretraining.replace("32", "48"))


def test_a_bad_flag_has_the_name_of_the_file() -> None:
    with pytest.raises(InvalidFields) as caught:
        read_train_config(SFT + "int4: maybe\n")
    assert [(problem.field, problem.code) for problem in caught.value.problems] == [("int4", "wrong_type")]


def test_every_bad_key_is_named_at_once() -> None:
    with pytest.raises(InvalidFields) as caught:
        read_train_config(SFT + "lora_r: 8\nuse_8bit: maybe\nquantization: {bit: 4}\ntokenizer: /etc\nbase_model: x\n")
    assert [(problem.field, problem.code) for problem in caught.value.problems] == [
        ("model_name", "conflicting_fields"), ("tokenizer", "path_outside_root"), ("use_8bit", "wrong_type"),
        ("quantization.bit", "unknown_field"), ("lora_r", "unknown_field"),
    ]  # fmt: skip


GROUP = "task_type: sft\nPEFT: true\nint4: true\n"
TUNED = SFT + "hyperparameter_tuning: {enabled: true, space: {lora_r: {choices: [4]}, LoRA_R: {choices: [8]}}}\n"
DISTRIBUTED = SFT + "training: {distributed: {enabled: true, num_gpus: 2, strategy: ddp}}\n"


@pytest.mark.parametrize(
    ("text", "field", "code", "said"),
    [
        (SFT + "quantization: {enabled: true, method: gptq}", "quantization.method", "not_a_choice", "none of qlora"),
        (SFT + "quantization: {enabled: 'false'}", "quantization.enabled", "wrong_type", "true or false"),
        (SFT + "quantization: {bits: 4}", "quantization.enabled", "required", "true or false"),
        (SFT + "quantization: {enabled: true, bits: 0}", "quantization.bits", "not_a_choice", "one of 4, 8"),
        (LORA + "quantization: {enabled: true, bits: 4}", "use_8bit", "conflicting_fields", "quantization.bits"),
        (LORA + "quantization: {enabled: false}", "quantization.enabled", "conflicting_fields", "use_8bit"),
        (LORA + "quantization_bits: 4", "use_8bit", "conflicting_fields", "quantization_bits"),
        (LORA + "peft: false", "peft", "conflicting_fields", "use_8bit"),
        (LORA.replace("use_8bit: true", "PEFT: false").split("bnb")[0], "PEFT", "conflicting_fields", "method lora"),
        (LORA.split("lora_r")[0] + "method: full", "method", "conflicting_fields", "task_type lora"),
        (GROUP + "method: full", "method", "conflicting_fields", "PEFT"),
        (SFT + "method: full\nuse_4bit: true", "method", "conflicting_fields", "use_4bit"),
        (SFT + "method: qlora\nuse_4bit: false", "use_4bit", "conflicting_fields", "method qlora"),
        (SFT + "global_batch_size: 64\ngradient_accumulation_steps: 4", "global_batch_size", "conflicting_fields",
         "per_device_train_batch_size 4 times gradient_accumulation_steps 4, 16"),
        (DISTRIBUTED + "global_batch_size: 16\ngradAccSteps: 4", "global_batch_size", "conflicting_fields",
         "4 times gradAccSteps 4 times 2 processes, 32"),
        (PRETRAIN.replace("1024", "6") + "gradAccSteps: 4", "global_batch_size", "out_of_range", "gradAccSteps 4"),
        (RL + "global_batch_size: 16", "global_batch_size", "unknown_field", "does not take it"),
        (PRETRAIN + "BlockSize: 512", "BlockSize", "conflicting_fields", "sequence_length"),
        (SFT + "fp16: true\nprecision: bf16", "fp16", "conflicting_fields", "'bf16'"),
        (SFT + "fp16: false\nprecision: fp16", "fp16", "conflicting_fields", "'fp16'"),
        (SFT + "gradient_checkpointing: {enabled: true, every: 2}", "gradient_checkpointing.every", "unknown_field",
         "is none of enabled"),
        (SFT + "gradient_checkpointing: {enabled: 'false'}", "gradient_checkpointing.enabled", "wrong_type", "true"),
        (SFT + "hyperparameter_tuning: {enabled: 1}", "hyperparameter_tuning.enabled", "wrong_type", "true or false"),
        (SFT + "hyperparameter_tuning: {enabled: true, metric: accuracy}", "hyperparameter_tuning.metric",
         "not_a_choice", "none of train/loss, eval/loss"),
        (RL + "hyperparameter_tuning: {enabled: true, metric: validation_loss}", "hyperparameter_tuning.metric",
         "not_a_choice", "reward/mean"),
        (TUNED, "hyperparameter_tuning.space.lora_r", "conflicting_fields", "LoRA_R"),
        (DISTRIBUTED.replace("num_gpus", "gpus"), "training.distributed.gpus", "unknown_field", "num_gpus"),
        (DISTRIBUTED + "distributed_strategy: fsdp", "training.distributed.strategy", "conflicting_fields", "are one"),
        (RL.replace("ppo", "dpo").split("rollout")[0] + "loss_type: ipo", "loss_type", "conflicting_fields", "dpo"),
        (RL.replace("ppo", "[ppo]"), "algorithm", "not_a_choice", "one of ppo"),
        ("task_type: [sft]", "task_type", "not_a_choice", "none of"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused_by_name(text: str, field: str, code: str, said: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        read_train_config(text)
    assert [(problem.field, problem.code) for problem in caught.value.problems] == [(field, code)]
    assert said in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (LORA + "quantization: {enabled: true, bits: 8, method: QLoRA}", {"quantization_bits": 8}),
        (LORA + "use_4bit: false\nmethod: qlora\npeft: true", {"quantization_bits": 8}),
        (SFT + "quantization: {enabled: false, bits: 4}\npeft: false", {"precision": "auto"}),
        (SFT + "fp16: true\nprecision: fp16", {"precision": "fp16"}),
        (SFT + "gradient_checkpointing: {enabled: false}", {"gradient_checkpointing": False}),
        (PRETRAIN + "gradient_accumulation_steps: 64", {"per_device_train_batch_size": 16}),
        (SFT.replace("size: 4", "size: '4'") + "global_batch_size: 64", {"gradient_accumulation_steps": 16}),
        (SFT + "global_batch_size: 64\ngradient_accumulation_steps: 16", {"gradient_accumulation_steps": 16}),
    ],
)  # fmt: skip
def test_keys_that_say_the_same_are_taken_together(text: str, wanted: dict[str, Any]) -> None:
    assert read_train_config(text).hyperparameters.items() >= wanted.items()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "wrong_type"),
        ("a: " + "[" * 5000, "malformed_yaml"),
        ("a: " + "9" * 5000, "malformed_yaml"),
        ("a: \x07", "malformed_yaml"),
        ("1: 2", "wrong_type"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_train_config(text)
    assert caught.value.code == code


def test_a_long_text_is_not_read() -> None:
    with pytest.raises(TooLarge):
        read_train_config("a: " + "x" * 70_000)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        (SFT + "hyperparameter_tuning: {enabled: true}", "eval/loss"),
        (RL + "hyperparameter_tuning: {enabled: true}", "reward/mean"),
        (SFT.replace("sft", "classify", 1) + "hyperparameter_tuning: {enabled: true, metric: validation_accuracy}",
         "eval/accuracy"),
        (RL.split("algorithm")[0] + "hyperparameter_tuning: {enabled: true, metric: accuracy}", "eval/reward_accuracy"),
    ],
)  # fmt: skip
def test_a_search_goes_by_what_its_recipe_measures(text: str, metric: str) -> None:
    assert read_train_config(text).search["metric"] == metric
