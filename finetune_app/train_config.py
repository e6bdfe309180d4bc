"""A training configuration as a YAML file: its paradigm, its names and its hyperparameters in our words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from clavier.core.errors import InvalidFields, quoted
from clavier.core.yaml_text import parse_yaml
from finetune_app.config_keys import ConfigKeys
from finetune_app.config_quantization import take_method
from runner.contract.alignment_knobs import PREFERENCE_BETAS
from runner.contract.knob_values import BadValue, Knob, read_value
from runner.contract.knobs import HyperparametersInvalid, check_hyperparameters
from runner.contract.measures import measured, our_measure

#: Paradigm of a file -> our recipe and the method without further words.
TASK_TYPES = {
    "sft": ("sft", "full"),
    "lora": ("sft", "lora"),
    "rl": ("rl", "full"),
    "pretrain": ("pretrain", "full"),
    "preference": ("preference", "full"),
    "reward": ("reward", "full"),
    "classify": ("classify", "full"),
    "seq2seq": ("seq2seq", "full"),
}
#: What the files call things -> our name.
NAMES = {
    "base_model": "model_name",
    "policy_model": "model_name",
    "train_batch_size": "per_device_train_batch_size",
    "per_device_batch_size": "per_device_train_batch_size",
    "peft_target_modules": "target_modules",
    "train_dataset": "dataset",
    "run_name": "name",
}
#: The parameters of a parameter group (document 000), in lower case and without "_" -> our name.
GROUP_NAMES = {
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "lorar": "lora_r",
    "loraalpha": "lora_alpha",
    "loradropout": "lora_dropout",
    "learningrate": "learning_rate",
    "epochs": "num_train_epochs",
    "blocksize": "max_seq_length",
    "batchsize": "per_device_train_batch_size",
    "warmupratio": "warmup_ratio",
    "weightdecay": "weight_decay",
    "gradaccsteps": "gradient_accumulation_steps",
    "trainertype": "trainer_type",
    "peft": "peft",
    "fp16": "fp16",
    "int4": "use_4bit",
    "int8": "use_8bit",
}
#: Spellings of optimizers elsewhere.
OPTIMIZERS = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_bnb_8bit": "adamw_8bit"}
#: Names of things, and paths below the user's own folder; ``name``: what the task is to be called.
WORDS = (
    "model_name", "reward_model", "reward_service", "dataset", "validation_dataset", "tokenizer", "deepspeed", "name",
    "output_model_name",
)  # fmt: skip
PATHS = ("dataset", "validation_dataset", "tokenizer", "deepspeed", "reward_model")
#: Samples of one forward pass where only the whole batch is given.
USUAL_BATCH = 8
#: What is multiplied into the batch of one process.
BATCH, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """``names``: model_name, dataset and so on, as written; ``keys``: what the file calls them.

    ``search``: ``{num_trials, metric}`` and the ``space`` where the file has one, or empty.
    """

    recipe: str
    method: str
    names: dict[str, str]
    hyperparameters: dict[str, Any]
    num_gpus: int = 0
    search: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def read_train_config(text: str, *, field: str = "content") -> TrainConfig:
    """The configuration of a YAML text. Raises Invalid, InvalidFields with every bad key, TooLarge."""
    return _Reader(parse_yaml(text, field=field), our_name).config()


def our_name(name: str) -> str:
    """What a key is called here."""
    return NAMES.get(name) or GROUP_NAMES.get(name.replace("_", "").lower(), name)


class _Reader(ConfigKeys):
    """Makes a configuration of the keys."""

    def config(self) -> TrainConfig:
        task_type = self.left.pop("task_type", None)
        if not isinstance(task_type, str) or task_type not in TASK_TYPES:
            what = f"task_type {quoted(task_type)} is none of {', '.join(TASK_TYPES)}"
            self.add("task_type", "not_a_choice", what)
            raise InvalidFields(self.problems)
        recipe, method = TASK_TYPES[task_type]
        names = self.take_names()
        num_gpus = self.take_distributed()
        method = take_method(self, method, task_type)
        recipe = self.paradigm(recipe, names)
        search = self.take_search(recipe)
        self.fold_words(recipe)
        self.fold_global_batch(max(1, num_gpus))
        checked = self.check(recipe, method, has_base=recipe != "pretrain")
        self.check_metric(recipe, search, checked)
        if self.problems:
            raise InvalidFields(self.problems)
        keys = {name: self.written[name] for name in names}
        return TrainConfig(recipe, method, names, checked, num_gpus, search, keys)

    def paradigm(self, recipe: str, names: Mapping[str, str]) -> str:
        """Rows with chosen and rejected are learned from without answers of the model's own, unless a file says how."""
        if recipe != "rl":
            return recipe
        algorithm = self.left.get("algorithm")
        if isinstance(algorithm, str) and algorithm in PREFERENCE_BETAS:
            del self.left["algorithm"]
            if self.left.setdefault("loss_type", algorithm) != algorithm:
                message = f"algorithm {algorithm} and loss_type {quoted(self.left['loss_type'])}: leave one out"
                self.contradict("loss_type", message)
            return "preference"
        says_how = {"algorithm", "reward_function", "reward_model", "reward_service"} & {*self.left, *names}
        return "rl" if says_how else "preference"

    def take_names(self) -> dict[str, str]:
        names = {}
        for name in WORDS:
            if name not in self.left:
                continue
            value, key = self.left.pop(name), self.written[name]
            if not isinstance(value, str) or not value.strip():
                self.add(key, "wrong_type", f"{key} needs a text, got {quoted(value)}; put a word in quotes")
            elif name in PATHS and (value.startswith(("/", "~", "\\")) or ".." in PurePosixPath(value).parts):
                self.add(key, "path_outside_root", f"{key} {quoted(value)} leaves your files; give a relative path")
            elif name == "deepspeed":
                self.add(key, "unknown_field", "deepspeed is not here; distributed_strategy: fsdp shards a model")
            else:
                names[name] = value
        if {"reward_model", "reward_service"} <= names.keys():
            self.contradict("reward_service", "reward_service: give it or reward_model, not both")
        return names

    def take_search(self, recipe: str) -> dict[str, Any]:
        block = self.take_block("hyperparameter_tuning", ("enabled", "trials", "metric", "space"))
        if not self.is_on("hyperparameter_tuning", block):
            return {}
        metric = str(block.get("metric", "reward/mean" if recipe == "rl" else "eval/loss"))
        trials = self.as_whole("hyperparameter_tuning.trials", block.get("trials", 20), 1, 500)
        space = block.get("space", {})
        if not isinstance(space, dict):
            self.add("hyperparameter_tuning.space", "wrong_type", "hyperparameter_tuning.space needs a mapping")
            space = {}
        self.refuse_doubles("hyperparameter_tuning.space.", space, our_name)
        named = {"space": {our_name(name): given for name, given in space.items()}} if space else {}
        return {"num_trials": trials, "metric": our_measure(recipe, metric), **named}

    def check_metric(self, recipe: str, search: Mapping[str, Any], checked: Mapping[str, Any]) -> None:
        """A search goes by what its trials measure; values that it tries may be any."""
        if not search:
            return
        fixed = {name: value for name, value in checked.items() if name not in search.get("space", {})}
        known = measured(recipe, fixed, has_validation=True)
        if search["metric"] not in known:
            key = "hyperparameter_tuning.metric"
            self.add(key, "not_a_choice", f"{key} {quoted(search['metric'])} is none of {', '.join(known)}")

    def take_distributed(self) -> int:
        """GPUs asked for; the strategy becomes a hyperparameter."""
        training, name = self.take_block("training", ("distributed",)), "training.distributed"
        block = self.known_part(name, training.get("distributed") or {}, ("enabled", "num_gpus", "strategy"))
        if not self.is_on(name, block):
            return 0
        if "strategy" in block:
            strategy = block["strategy"]
            if "distributed_strategy" in self.left:
                self.contradict(f"{name}.strategy", f"{name}.strategy and distributed_strategy are one; leave one out")
            self.left["distributed_strategy"] = strategy.lower() if isinstance(strategy, str) else strategy
            self.written["distributed_strategy"] = f"{name}.strategy"
        return self.as_whole(f"{name}.num_gpus", block.get("num_gpus", 1), 1, 1024)

    def fold_words(self, recipe: str) -> None:
        """What other trainers write otherwise."""
        optimizer = self.left.get("optim")
        if isinstance(optimizer, str):
            self.left["optim"] = OPTIMIZERS.get(optimizer.lower(), optimizer.lower())
        if recipe == "pretrain" and "max_seq_length" in self.left:
            key = self.written["max_seq_length"]
            if "sequence_length" in self.left:
                self.contradict(key, f"{key} and sequence_length are the same length here; leave one out")
            self.written["sequence_length"] = key
            self.left["sequence_length"] = self.left.pop("max_seq_length")
        self.fold_half_precision()
        checkpointing = self.left.get("gradient_checkpointing")
        if isinstance(checkpointing, dict):
            block = self.known_part("gradient_checkpointing", checkpointing, ("enabled",))
            self.left["gradient_checkpointing"] = self.is_on("gradient_checkpointing", block) is True
        trainer = self.left.pop("trainer_type", "standard")
        if str(trainer).lower() != "standard":
            key = self.written["trainer_type"]
            message = f"{key} {quoted(trainer)} is none of Standard; task_type says what is trained"
            self.add(key, "not_a_choice", message)

    def fold_half_precision(self) -> None:
        """``fp16`` is one of the values of ``precision``."""
        is_half = self.take_flag("fp16")
        if is_half is None:
            return
        key, precision = self.written["fp16"], self.left.get("precision")
        if precision is not None and is_half != (precision == "fp16"):
            message = f"{key} {str(is_half).lower()} and precision {quoted(precision)} contradict each other"
            self.contradict(key, f"{message}; leave one out")
        elif is_half:
            self.written.setdefault("precision", key)
            self.left["precision"] = "fp16"

    def fold_global_batch(self, num_processes: int) -> None:
        """``global_batch_size`` is the batch of one process times processes times accumulation."""
        if "global_batch_size" not in self.left:
            return
        whole = self.as_whole("global_batch_size", self.left.pop("global_batch_size"), 1, 2**24)
        given = {name: self.factor(name) for name in (BATCH, STEPS) if name in self.left}
        product = math.prod(given.values()) * num_processes
        factors = [f"{self.written[name]} {value}" for name, value in given.items()]
        said = " times ".join(factors + ([f"{num_processes} processes"] if num_processes > 1 else []))
        if len(given) == 2 and product != whole:
            self.contradict("global_batch_size", f"global_batch_size {whole} is not {said}, {product}; leave one out")
        elif whole % product:
            self.add("global_batch_size", "out_of_range", f"global_batch_size {whole} is no multiple of {said}")
        else:
            if BATCH not in given:
                most = whole // product if STEPS in given else math.gcd(whole // num_processes, USUAL_BATCH)
                self.derive(BATCH, most, "global_batch_size")
            if STEPS not in given:
                self.derive(STEPS, whole // num_processes // given.get(BATCH, self.left[BATCH]), "global_batch_size")

    def factor(self, name: str) -> int:
        """The number of a key as it will be read; 1 where it will be refused."""
        try:
            return max(1, int(read_value(Knob(name, "int", 1, "", ""), self.left[name])))
        except BadValue:
            return 1

    def derive(self, name: str, value: int, key: str) -> None:
        """A hyperparameter that follows from another key."""
        self.left[name] = value
        self.written[name] = key

    def check(self, recipe: str, method: str, *, has_base: bool) -> dict[str, Any]:
        try:
            return check_hyperparameters(recipe, method, self.left, has_base=has_base)
        except HyperparametersInvalid as error:
            for problem in error.problems:
                key = self.written.get(problem.field, problem.field)
                self.add(key, problem.code, f"{key}: {problem.message}")
            return {}
