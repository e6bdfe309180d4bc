"""A training configuration as a YAML file: its paradigm, its names and its hyperparameters in our words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from clavier.core.errors import FieldProblem, InvalidFields, quoted
from clavier.core.yaml_text import parse_yaml
from runner.contract.alignment_knobs import PREFERENCE_BETAS
from runner.contract.knob_values import BadValue, Knob, read_value
from runner.contract.knobs import HyperparametersInvalid, check_hyperparameters

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
    "model_name", "reward_model", "dataset", "validation_dataset", "tokenizer", "deepspeed", "name",
    "output_model_name",
)  # fmt: skip
PATHS = ("dataset", "validation_dataset", "tokenizer", "deepspeed", "reward_model")
#: What a metric of a search is called elsewhere.
METRICS = {"validation_loss": "eval/loss", "train_loss": "train/loss"}
#: Samples of one forward pass where only the whole batch is given.
USUAL_BATCH = 8


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
    return _Reader(parse_yaml(text, field=field)).config()


def our_name(name: str) -> str:
    """What a key is called here."""
    return NAMES.get(name) or GROUP_NAMES.get(name.replace("_", "").lower(), name)


class _Reader:
    """Takes the keys out of a mapping; what is left are hyperparameters."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.problems: list[FieldProblem] = []
        #: Our name -> the name in the file.
        self.written = {our_name(name): name for name in given}
        self.left = {our_name(name): value for name, value in given.items()}
        if len(self.left) < len(given):
            double = next(name for name in given if self.written[our_name(name)] != name)
            self.add(double, "conflicting_fields", f"{double} is given under another name too; leave one out")

    def config(self) -> TrainConfig:
        task_type = self.left.pop("task_type", None)
        if task_type not in TASK_TYPES:
            what = f"task_type {quoted(task_type)} is none of {', '.join(TASK_TYPES)}"
            self.add("task_type", "not_a_choice", what)
            raise InvalidFields(self.problems)
        recipe, method = TASK_TYPES[task_type]
        names = self.take_names()
        search, num_gpus = self.take_search(), self.take_distributed()
        method = self.take_method(method)
        recipe = self.paradigm(recipe, names)
        self.fold_words(recipe)
        self.fold_global_batch(max(1, num_gpus))
        checked = self.check(recipe, method, has_base=recipe != "pretrain")
        if self.problems:
            raise InvalidFields(self.problems)
        keys = {name: self.written[name] for name in names}
        return TrainConfig(recipe, method, names, checked, num_gpus, search, keys)

    def paradigm(self, recipe: str, names: Mapping[str, str]) -> str:
        """Rows with chosen and rejected are learned from without answers of the model's own, unless a file says how."""
        if recipe != "rl":
            return recipe
        if self.left.get("algorithm") in PREFERENCE_BETAS:
            self.left["loss_type"] = self.left.pop("algorithm")
            return "preference"
        says_how = {"algorithm", "reward_function", "reward_model"} & {*self.left, *names}
        return "rl" if says_how else "preference"

    def add(self, name: str, code: str, message: str) -> None:
        self.problems.append(FieldProblem(name, code, f"{message}."))

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
        return names

    def take_method(self, method: str) -> str:
        """The method after what the file says of quantization and adapters."""
        if "method" in self.left:
            method = str(self.left.pop("method"))
        if self.take_flag("peft") and method == "full":
            method = "lora"
        bits = 0
        if bool(self.left.get("use_8bit")) and bool(self.left.get("use_4bit")):
            self.add(self.written["use_8bit"], "conflicting_fields", "a base has 4 or 8 bits; ask for one of them")
        for name, meant in (("use_8bit", 8), ("use_4bit", 4)):
            if self.take_flag(name):
                bits = meant
        quantization = self.take_block("quantization", ("enabled", "bits", "method"))
        if quantization.get("enabled"):
            bits = quantization.get("bits", 4)
        if bits:
            self.left["quantization_bits"] = bits
            return "qlora"
        return method

    def take_search(self) -> dict[str, Any]:
        block = self.take_block("hyperparameter_tuning", ("enabled", "trials", "metric", "space"))
        if not block.get("enabled"):
            return {}
        metric = str(block.get("metric", "validation_loss"))
        trials = self.take_whole("hyperparameter_tuning.trials", block.get("trials", 20), 1, 500)
        space = block.get("space", {})
        if not isinstance(space, dict):
            self.add("hyperparameter_tuning.space", "wrong_type", "hyperparameter_tuning.space needs a mapping")
            space = {}
        named = {"space": {our_name(name): given for name, given in space.items()}} if space else {}
        return {"num_trials": trials, "metric": METRICS.get(metric, metric), **named}

    def take_distributed(self) -> int:
        """GPUs asked for; the strategy becomes a hyperparameter."""
        training = self.take_block("training", ("distributed",))
        block = training.get("distributed") or {}
        if not isinstance(block, dict) or set(block) - {"enabled", "num_gpus", "strategy"}:
            self.add("training.distributed", "wrong_type", "training.distributed needs enabled, num_gpus, strategy")
            return 0
        if not block.get("enabled"):
            return 0
        if "strategy" in block:
            strategy = block["strategy"]
            self.left["distributed_strategy"] = strategy.lower() if isinstance(strategy, str) else strategy
        return self.take_whole("training.distributed.num_gpus", block.get("num_gpus", 1), 1, 1024)

    def fold_words(self, recipe: str) -> None:
        """What other trainers write otherwise."""
        optimizer = self.left.get("optim")
        if isinstance(optimizer, str):
            self.left["optim"] = OPTIMIZERS.get(optimizer.lower(), optimizer.lower())
        if recipe == "pretrain" and "max_seq_length" in self.left:
            self.written["sequence_length"] = self.written["max_seq_length"]
            self.left["sequence_length"] = self.left.pop("max_seq_length")
        if self.take_flag("fp16"):
            self.written.setdefault("precision", self.written["fp16"])
            self.left.setdefault("precision", "fp16")
        trainer = self.left.pop("trainer_type", "standard")
        if str(trainer).lower() != "standard":
            key = self.written["trainer_type"]
            self.add(
                key, "not_a_choice", f"{key} {quoted(trainer)} is none of Standard; task_type says what is trained"
            )

    def fold_global_batch(self, num_processes: int) -> None:
        """``global_batch_size`` is the batch of one process times processes times accumulation."""
        if "global_batch_size" not in self.left:
            return
        whole = self.take_whole("global_batch_size", self.left.pop("global_batch_size"), 1, 2**24)
        name = "per_device_train_batch_size"
        if name not in self.left:
            self.left[name] = math.gcd(whole, USUAL_BATCH * num_processes) // num_processes or 1
        own = self.left[name]
        step = own * num_processes if isinstance(own, int) and own > 0 else 1
        if whole % step:
            processes = f" times {num_processes} processes" if num_processes > 1 else ""
            message = f"global_batch_size {whole} is no multiple of {self.written.get(name, name)} {own}{processes}"
            self.add("global_batch_size", "out_of_range", message)
        else:
            self.left.setdefault("gradient_accumulation_steps", whole // step)

    def check(self, recipe: str, method: str, *, has_base: bool) -> dict[str, Any]:
        block = self.left.get("gradient_checkpointing")
        if isinstance(block, dict):
            self.left["gradient_checkpointing"] = block.get("enabled", False)
        try:
            return check_hyperparameters(recipe, method, self.left, has_base=has_base)
        except HyperparametersInvalid as error:
            for problem in error.problems:
                key = self.written.get(problem.field, problem.field)
                self.add(key, problem.code, f"{key}: {problem.message}")
            return {}

    def take_flag(self, name: str) -> bool:
        if name not in self.left:
            return False
        value, key = self.left.pop(name), self.written[name]
        if not isinstance(value, bool):
            self.add(key, "wrong_type", f"{key} needs true or false, got {quoted(value)}")
        return value is True

    def take_block(self, name: str, known: tuple[str, ...]) -> Mapping[str, Any]:
        """A mapping with some of the known keys, empty where it is absent or no such mapping."""
        block = self.left.pop(name, {})
        if not isinstance(block, dict):
            self.add(name, "wrong_type", f"{name} needs a mapping of {', '.join(known)}")
            return {}
        for key in sorted(set(block) - set(known), key=str):
            self.add(f"{name}.{key}", "unknown_field", f"{name}.{key} is none of {', '.join(known)}")
        return block

    def take_whole(self, name: str, value: Any, low: int, high: int) -> int:
        try:
            return int(read_value(Knob(name, "int", low, "", "", low, high), value))
        except BadValue as error:
            self.add(name, error.code, f"{name}: {error}")
            return low
