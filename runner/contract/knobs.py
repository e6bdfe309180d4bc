"""The one table of hyperparameters: forms, the APIs, validation, documentation and programs all read it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.contract.alignment_knobs import ALIGNMENT_KNOBS
from runner.contract.contradictions import COMPARING, contradictions
from runner.contract.knob_values import RECIPES, BadValue, Knob, read_value
from runner.contract.pretrain_knobs import NEW_MODEL_SHAPE, PRETRAIN_KNOBS
from runner.contract.reinforcement_knobs import REINFORCEMENT_KNOBS

__all__ = [
    "ADAPTER_METHODS",
    "COMPARING",
    "KNOBS",
    "NEW_MODEL_SHAPE",
    "RECIPES",
    "check_hyperparameters",
    "idle_knobs",
    "knobs_of",
]

#: Methods that train an adapter beside a frozen base.
ADAPTER_METHODS = ("lora", "qlora")
#: Recipes that read samples (not one long row of text), and that can train an adapter.
SAMPLE_RECIPES = tuple(recipe for recipe in RECIPES if recipe != "pretrain")
#: Recipes that learn from given answers, so that validation data has a loss.
LOSS_RECIPES = tuple(recipe for recipe in RECIPES if recipe != "rl")


@dataclass(frozen=True, slots=True)
class KnobProblem:
    """What is wrong with one value."""

    field: str
    value: Any
    message: str
    code: str = "bad_value"


class HyperparametersInvalid(Exception):
    """All that is wrong with a set of hyperparameters, at once."""

    def __init__(self, problems: list[KnobProblem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


KNOBS: tuple[Knob, ...] = (
    Knob("learning_rate", "float", 2e-4, "Peak learning rate.", "学习率峰值。", 1e-12, 1.0),
    Knob(
        "num_train_epochs",
        "float",
        3.0,
        "Passes over the data; fractions are allowed.",
        "训练轮数, 可为小数。",
        0.01,
        10_000,
        unit="epochs",
    ),
    Knob(
        "max_steps",
        "int",
        0,
        "Optimizer steps; 0: as many as the epochs need.",
        "优化步数; 0 表示由训练轮数决定。",
        0,
        100_000_000,
        unit="steps",
    ),
    Knob(
        "per_device_train_batch_size",
        "int",
        8,
        "Samples in one forward pass.",
        "单次前向计算的样本数。",
        1,
        4096,
        unit="samples",
    ),
    Knob(
        "gradient_accumulation_steps",
        "int",
        1,
        "Forward passes per optimizer step.",
        "每次参数更新累积的前向次数。",
        1,
        4096,
        recipes=LOSS_RECIPES,
    ),
    Knob(
        "max_seq_length",
        "int",
        1024,
        "Longest sample; length_policy says what happens to longer ones.",
        "样本最大长度; 更长的样本按 length_policy 处理。",
        8,
        1_048_576,
        unit="tokens",
        recipes=SAMPLE_RECIPES,
    ),
    Knob(
        "length_policy",
        "str",
        "truncate",
        "Longer samples are cut at the end, dropped, or (sft, and seq2seq with a causal base) split into several.",
        "超长样本: truncate 截断, drop 丢弃, split 切分为多条 (仅 sft, 以及因果基座的 seq2seq)。",
        choices=("truncate", "drop", "split"),
        recipes=tuple(recipe for recipe in SAMPLE_RECIPES if recipe in LOSS_RECIPES),
        narrow_choices=(("split", ("sft", "seq2seq")),),
    ),
    Knob(
        "packing",
        "bool",
        True,
        "Samples end to end in a row instead of padded; each sees only itself, so losses stay the same.",
        "样本首尾相接而不填充; 各样本互不可见, 损失不变。",
        recipes=("sft", "seq2seq"),
    ),
    Knob(
        "lr_scheduler_type",
        "str",
        "cosine",
        "How the learning rate falls after the warm-up.",
        "预热后学习率的变化方式。",
        choices=("linear", "cosine", "constant"),
    ),
    Knob(
        "warmup_ratio",
        "float",
        0.03,
        "Share of the steps in which the learning rate rises from 0.",
        "学习率从 0 上升所占步数的比例。",
        0.0,
        1.0,
    ),
    Knob("optim", "str", "adamw", "Optimizer.", "优化器。", choices=("adamw", "sgd", "adafactor", "adamw_8bit")),
    Knob(
        "weight_decay",
        "float",
        0.0,
        "Decay of weight matrices (not of norms and biases).",
        "权重矩阵的衰减系数 (不含归一化层与偏置)。",
        0.0,
        1.0,
    ),
    Knob(
        "max_grad_norm",
        "float",
        1.0,
        "Gradients are scaled down to this norm; 0: never.",
        "梯度裁剪的范数上限; 0 表示不裁剪。",
        0.0,
        1000.0,
    ),
    Knob("seed", "int", 42, "Start of every random choice.", "随机种子。", 0, 2**32 - 1),
    Knob(
        "precision",
        "str",
        "auto",
        "auto: bf16 where the device multiplies it, else fp32; fp16 needs a GPU.",
        "计算精度; auto: 设备支持 bf16 运算时用 bf16, 否则用 fp32; fp16 需要 GPU。",
        choices=("auto", "fp32", "bf16", "fp16"),
    ),
    Knob(
        "gradient_checkpointing",
        "bool",
        False,
        "Recompute activations: less memory, about a third slower.",
        "重算激活值: 节省显存, 速度约慢三分之一。",
    ),
    Knob(
        "logging_steps",
        "int",
        10,
        "A line of metrics every so many steps.",
        "每多少步记录一次指标。",
        1,
        1_000_000,
        unit="steps",
    ),
    Knob(
        "eval_steps",
        "int",
        0,
        "Validation loss every so many steps; 0: at the end, and after each epoch where load_best or "
        "early_stopping_patience compares; rl: the mean reward of so many steps, 0: never.",
        "每多少步计算一次验证损失; 0 表示仅在结束时, 启用 load_best 或 early_stopping_patience 时为每轮之后; "
        "rl: 每多少步计算一次平均奖励, 0 表示不计算。",
        0,
        1_000_000,
        unit="steps",
    ),
    Knob(
        "save_steps",
        "int",
        500,
        "A checkpoint every so many steps, from which the training goes on after a crash; 0: only when stopped.",
        "每多少步保存一次检查点, 崩溃后从检查点继续训练; 0 表示仅在被停止时保存。",
        0,
        1_000_000,
        unit="steps",
    ),
    Knob(
        "save_total_limit",
        "int",
        2,
        "Checkpoints kept; the best one stays besides.",
        "保留的检查点个数 (最佳检查点另外保留)。",
        2,
        1000,
    ),
    Knob(
        "load_best",
        "bool",
        False,
        "End with the weights of the lowest validation loss; rl: of the highest mean reward.",
        "以验证损失最低的权重作为结果; rl: 平均奖励最高的权重。",
    ),
    Knob(
        "early_stopping_patience",
        "int",
        0,
        "Stop after so many evaluations without a lower loss (rl: a higher reward); 0: never.",
        "验证损失连续多少次未下降 (rl: 奖励未上升) 则提前停止; 0 表示不提前停止。",
        0,
        10_000,
        unit="evaluations",
    ),
    Knob(
        "lora_r",
        "int",
        16,
        "Rank of the adapter.",
        "LoRA 的秩。",
        1,
        1024,
        recipes=SAMPLE_RECIPES,
        methods=ADAPTER_METHODS,
    ),
    Knob(
        "lora_alpha",
        "float",
        32.0,
        "The adapter is scaled by lora_alpha / lora_r.",
        "LoRA 缩放系数为 lora_alpha / lora_r。",
        0.01,
        4096,
        recipes=SAMPLE_RECIPES,
        methods=ADAPTER_METHODS,
    ),
    Knob(
        "lora_dropout",
        "float",
        0.0,
        "Dropout in front of the adapter.",
        "LoRA 的随机失活率。",
        0.0,
        0.9,
        recipes=SAMPLE_RECIPES,
        methods=ADAPTER_METHODS,
    ),
    Knob(
        "target_modules",
        "list",
        ("all-linear",),
        "Layers that get an adapter, by the end of their names.",
        "加入 LoRA 的层 (按名称结尾匹配)。",
        recipes=SAMPLE_RECIPES,
        methods=ADAPTER_METHODS,
    ),
    Knob(
        "distributed_strategy",
        "str",
        "ddp",
        "With several GPUs: ddp holds the model on each, fsdp (not rl or qlora) shares weights and optimizer out.",
        "多 GPU 训练方式: ddp 每卡保存完整模型, fsdp (rl 与 qlora 除外) 将权重与优化器状态分片。",
        choices=("ddp", "fsdp"),
        narrow_choices=(("fsdp", LOSS_RECIPES),),
    ),
    *PRETRAIN_KNOBS,
    *ALIGNMENT_KNOBS,
    *REINFORCEMENT_KNOBS,
)


def knobs_of(recipe: str, method: str) -> tuple[Knob, ...]:
    """The knobs that a recipe takes with a method, in the order of the table. Raises HyperparametersInvalid."""
    if recipe not in RECIPES:
        raise HyperparametersInvalid([_choice_problem("recipe", recipe, tuple(RECIPES))])
    if method not in RECIPES[recipe]:
        raise HyperparametersInvalid([_choice_problem("method", method, RECIPES[recipe])])
    taken = (knob for knob in KNOBS if recipe in knob.recipes and (not knob.methods or method in knob.methods))
    return tuple(knob.for_recipe(recipe) for knob in taken)


def check_hyperparameters(
    recipe: str, method: str, given: Mapping[str, Any], *, has_base: bool = False
) -> dict[str, Any]:
    """Every knob of the recipe, typed, with defaults where nothing is given.

    ``has_base``: a pretraining goes on from a base model, whose shape counts, so the shape knobs stay unset.

    Raises HyperparametersInvalid with all problems: unknown names, wrong types, values out of range, values that change
    nothing beside the others, shapes that contradict each other.
    """
    knobs = knobs_of(recipe, method)
    known = {knob.name: knob for knob in knobs}
    problems = [
        _unknown_problem(name, value, recipe, method, known) for name, value in given.items() if name not in known
    ]
    values: dict[str, Any] = {}
    for knob in knobs:
        try:
            values[knob.name] = read_value(knob, given.get(knob.name))
        except BadValue as error:
            message = str(error) + _others_take(knob.name, given[knob.name])
            problems.append(KnobProblem(knob.name, given[knob.name], message, error.code))
    bad = {problem.field for problem in problems}
    problems += [
        _idle_problem(knob, values[knob.name])
        for knob in idle_knobs(recipe, method, values)
        if knob.counts_with and knob.counts_with[0] not in bad
    ]
    problems += [
        KnobProblem(name, values[name], message, "conflicting_fields")
        for name, message in contradictions(recipe, method, values)
    ]
    if recipe == "pretrain" and not has_base and not problems:
        problems = _shape_problems(values)
    if problems:
        raise HyperparametersInvalid(problems)
    return values


def idle_knobs(recipe: str, method: str, values: Mapping[str, Any]) -> list[Knob]:
    """The knobs that are set to other values than their defaults and change nothing beside the others' values."""
    taken = knobs_of(recipe, method)
    known = {**{knob.name: knob.default for knob in taken}, **values}
    return [knob for knob in taken if known[knob.name] != knob.default and not knob.counts(known)]


def _others_take(name: str, value: Any) -> str:
    """Who takes a choice that not every recipe takes; empty where nobody does or it is none."""
    narrow = next(dict(knob.narrow_choices) for knob in KNOBS if knob.name == name)
    return f"; {value} is for {', '.join(narrow[value])}" if isinstance(value, str) and value in narrow else ""


def _idle_problem(knob: Knob, value: Any) -> KnobProblem:
    assert knob.counts_with is not None
    name, wanted = knob.counts_with
    message = f"changes something with {name} {' or '.join(wanted)} only; leave it out, or change {name}"
    return KnobProblem(knob.name, value, message, "conflicting_fields")


def _shape_problems(values: Mapping[str, Any]) -> list[KnobProblem]:
    """Sizes of a new model that are each allowed and can not go together."""
    problems = []
    shape = {name: values[name] or default for name, default in NEW_MODEL_SHAPE.items()}
    hidden, heads, groups = (shape[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if hidden not in (32 * heads, 64 * heads, 128 * heads):
        fitting = [str(hidden // size) for size in (32, 64, 128) if hidden % size == 0]
        hint = (
            f"with hidden_size {hidden} use {' or '.join(fitting)}" if fitting else "make hidden_size a multiple of 32"
        )
        problems.append(KnobProblem("num_attention_heads", heads, f"hidden_size / heads must be 32, 64 or 128; {hint}"))
    if heads % groups:
        problems.append(
            KnobProblem("num_key_value_heads", groups, f"{groups} does not divide num_attention_heads {heads}")
        )
    return problems


def _unknown_problem(name: str, value: Any, recipe: str, method: str, known: Mapping[str, Knob]) -> KnobProblem:
    elsewhere = next((knob for knob in KNOBS if knob.name == name), None)
    if elsewhere is not None:
        takers = ", ".join(elsewhere.recipes) + (f" with {', '.join(elsewhere.methods)}" if elsewhere.methods else "")
        return KnobProblem(
            name, value, f"{recipe} with method {method} does not take it (taken by {takers})", "unknown_field"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return KnobProblem(name, value, f"unknown hyperparameter; {hint}", "unknown_field")


def _choice_problem(field: str, value: Any, choices: tuple[str, ...]) -> KnobProblem:
    return KnobProblem(field, value, f"{value!r} is not one of {', '.join(choices)}", "not_a_choice")
