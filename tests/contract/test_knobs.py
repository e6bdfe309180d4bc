"""The table of hyperparameters and the one check of values against it."""

from __future__ import annotations

import pytest

from runner.contract.knobs import KNOBS, RECIPES, HyperparametersInvalid, check_hyperparameters, knobs_of
from runner.contract.reinforcement_knobs import even_prompts


def problems_of(recipe: str, method: str, given: dict[str, object]) -> dict[str, str]:
    with pytest.raises(HyperparametersInvalid) as caught:
        check_hyperparameters(recipe, method, given)
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(("recipe", "method"), [(recipe, method) for recipe in RECIPES for method in RECIPES[recipe]])
def test_the_defaults_of_every_recipe_pass_their_own_check(recipe: str, method: str) -> None:
    complete = check_hyperparameters(recipe, method, {})
    assert check_hyperparameters(recipe, method, complete) == complete
    assert list(complete) == [knob.name for knob in knobs_of(recipe, method)]


def test_every_knob_has_help_in_both_languages_and_a_recipe() -> None:
    assert all(knob.help_en and knob.help_zh and set(knob.recipes) <= set(RECIPES) for knob in KNOBS)
    assert len({knob.name for knob in KNOBS}) == len(KNOBS)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("learning_rate", "2e-5", 2e-5),
        ("learning_rate", 2e-5, 2e-5),
        ("per_device_train_batch_size", "8", 8),
        ("max_steps", 100.0, 100),
        ("seed", str(2**31 + 1), 2**31 + 1),
        ("gradient_checkpointing", "true", True),
        ("gradient_checkpointing", False, False),
        ("target_modules", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("target_modules", ["q_proj"], ["q_proj"]),
        ("optim", "sgd", "sgd"),
    ],
)
def test_values_are_read_as_people_and_yaml_write_them(name: str, given: object, expected: object) -> None:
    value = check_hyperparameters("sft", "lora", {name: given})[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "word"),
    [
        ("learning_rate", "nan", "no finite number"),
        ("learning_rate", float("inf"), "no finite number"),
        ("learning_rate", -1, "outside 1e-12 to 1"),
        ("learning_rate", True, "needs a number"),
        ("learning_rate", "fast", "needs a number"),
        ("max_steps", 1.5, "needs a whole number"),
        ("max_steps", "9" * 400, "outside"),
        ("max_steps", [1], "needs a whole number"),
        ("optim", "adam", "not one of adamw, sgd, adafactor, adamw_8bit"),
        ("optim", ["adamw"], "not one of"),
        ("load_best", 1, "true or false"),
        ("target_modules", [], "at least one name"),
        ("target_modules", [3], "list of names"),
    ],
)
def test_bad_values_are_refused_in_words(name: str, given: object, word: str) -> None:
    assert word in problems_of("sft", "lora", {name: given})[name]


def test_a_number_with_choices_takes_only_those() -> None:
    assert check_hyperparameters("sft", "qlora", {"quantization_bits": "8"})["quantization_bits"] == 8
    assert "one of 4, 8" in problems_of("sft", "qlora", {"quantization_bits": 6})["quantization_bits"]


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of("sft", "lora", {"learning_rat": 1e-4, "max_steps": -1, "optim": "x"})
    assert set(problems) == {"learning_rat", "max_steps", "optim"}


def test_an_unknown_name_gets_a_suggestion() -> None:
    assert "did you mean learning_rate?" in problems_of("sft", "lora", {"learning_rat": 1})["learning_rat"]


def test_a_knob_of_another_method_says_who_takes_it() -> None:
    assert "taken by sft, preference" in problems_of("sft", "full", {"lora_r": 8})["lora_r"]


def test_unknown_recipes_and_methods_name_the_known_ones() -> None:
    assert ", ".join(RECIPES) in problems_of("dance", "full", {})["recipe"]
    assert "full" in problems_of("pretrain", "lora", {})["method"]


def test_a_shape_that_no_server_serves_is_refused_with_one_that_fits() -> None:
    assert (
        "use 8 or 4 or 2"
        in problems_of("pretrain", "full", {"hidden_size": 256, "num_attention_heads": 3})["num_attention_heads"]
    )
    assert "does not divide" in problems_of("pretrain", "full", {"num_key_value_heads": 3})["num_key_value_heads"]


def test_with_a_base_model_the_shape_stays_unset() -> None:
    assert check_hyperparameters("pretrain", "full", {}, has_base=True)["hidden_size"] is None


@pytest.mark.parametrize("optim", ["adafactor", "adamw_8bit"])
def test_weights_are_shared_out_with_optimizers_that_can_be(optim: str) -> None:
    problems = problems_of("sft", "full", {"distributed_strategy": "fsdp", "optim": optim})
    assert "fsdp takes adamw or sgd" in problems["optim"]


@pytest.mark.parametrize("recipe", ["sft", "preference"])
def test_a_quantized_base_is_held_whole_by_each_process(recipe: str) -> None:
    assert check_hyperparameters(recipe, "qlora", {"distributed_strategy": "ddp"})["distributed_strategy"] == "ddp"
    problems = problems_of(recipe, "qlora", {"distributed_strategy": "fsdp", "optim": "magic"})
    assert "fsdp shares no quantized weights out; use ddp" in problems["distributed_strategy"]
    assert set(problems) == {"distributed_strategy", "optim"}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_kto_needs_two_replies_in_a_forward_pass(method: str) -> None:
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    problems = problems_of("preference", method, {"loss_type": "kto", **batch})
    assert "kto compares a reply with another one" in problems["per_device_train_batch_size"]
    assert check_hyperparameters("preference", method, {"loss_type": "dpo", **batch})["loss_type"] == "dpo"
    two = {"loss_type": "kto", "per_device_train_batch_size": 2}
    assert check_hyperparameters("preference", method, two)["loss_type"] == "kto"


@pytest.mark.parametrize("recipe", ["classify", "reward", "preference"])
def test_a_choice_that_a_recipe_does_not_take_is_refused_with_those_it_takes(recipe: str) -> None:
    told = problems_of(recipe, "full", {"length_policy": "split"})["length_policy"]
    assert told == "'split' is not one of truncate, drop; split is for sft, seq2seq"
    for taker in ("sft", "seq2seq"):
        assert check_hyperparameters(taker, "full", {"length_policy": "split"})["length_policy"] == "split"


@pytest.mark.parametrize(
    ("recipe", "method", "idle", "beside"),
    [
        ("rl", "full", {"kl_target": 0.5}, {"algorithm": "grpo"}),
        ("rl", "full", {"vf_coef": 0.5}, {"algorithm": "rloo"}),
        ("rl", "lora", {"num_generations": 8}, {"algorithm": "ppo"}),
        ("rl", "lora", {"reward_pattern": "x"}, {"reward_function": "length"}),
        ("preference", "lora", {"simpo_gamma": 1.0}, {"loss_type": "dpo"}),
        ("preference", "qlora", {"bnb_4bit_quant_type": "fp4"}, {"quantization_bits": 8}),
    ],
)
def test_a_value_that_changes_nothing_beside_the_others_is_refused(
    recipe: str, method: str, idle: dict[str, object], beside: dict[str, object]
) -> None:
    (name,), (other,) = idle, beside
    assert f"changes something with {other} " in problems_of(recipe, method, {**idle, **beside})[name]
    assert name in check_hyperparameters(recipe, method, beside)
    with pytest.raises(HyperparametersInvalid) as caught:
        check_hyperparameters(recipe, method, {**idle, **beside})
    assert caught.value.problems[0].code == "conflicting_fields"


def test_a_bad_choice_is_told_once() -> None:
    assert set(problems_of("rl", "full", {"algorithm": "dance", "kl_target": 0.5})) == {"algorithm"}


def test_what_a_knob_counts_with_is_a_knob_of_the_same_recipes_with_those_choices() -> None:
    known = {knob.name: knob for knob in KNOBS}
    for knob in KNOBS:
        if knob.counts_with:
            other, values = knob.counts_with
            assert set(knob.recipes) <= set(known[other].recipes)
            assert set(values) < set(known[other].choices)
        for choice, takers in knob.narrow_choices:
            assert choice in knob.choices
            assert set(takers) < set(knob.recipes)


def test_answers_are_drawn_with_the_whole_model_in_each_process() -> None:
    assert check_hyperparameters("rl", "full", {"distributed_strategy": "ddp"})["distributed_strategy"] == "ddp"
    told = problems_of("rl", "full", {"distributed_strategy": "fsdp"})["distributed_strategy"]
    assert told.startswith("'fsdp' is not one of ddp; fsdp is for sft, preference")


@pytest.mark.parametrize(
    ("prompts", "answers", "processes", "even"),
    [(16, 4, 8, 16), (7, 2, 4, 6), (3, 3, 4, 0), (5, 4, 1, 5), (5, 3, 2, 4)],
)
def test_answers_are_shared_evenly(prompts: int, answers: int, processes: int, even: int) -> None:
    assert even_prompts(prompts, answers, processes) == even
    assert even * answers % processes == 0


def test_ppo_is_not_computed_in_fp16() -> None:
    assert "use bf16, fp32 or auto" in problems_of("rl", "full", {"precision": "fp16"})["precision"]
    assert check_hyperparameters("rl", "full", {"precision": "fp16", "algorithm": "grpo"})["precision"] == "fp16"
