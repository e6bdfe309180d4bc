"""What a task may be made of: its base, its data, its reward model and its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from clavier.core.actor import Actor
from clavier.core.errors import FieldProblem, Invalid, InvalidFields
from datasets_app.models import DatasetVersion
from datasets_app.queries import access_dataset_version
from models_app.models import ModelVersion
from models_app.services import access_model_version, require_task, require_usable
from runner.contract.knobs import COMPARING, HyperparametersInvalid, check_hyperparameters
from runner.contract.reinforcement_knobs import even_prompts

#: What the columns of a dataset must look like for a recipe (the kinds of datasets_app).
DATA_KINDS = {
    "sft": ("messages", "instruction", "question_answer", "prompt_completion", "text"),
    "preference": ("preference", "binary_preference"),
    "reward": ("preference",),
    "classify": ("label",),
    "seq2seq": ("source_target", "instruction", "question_answer", "prompt_completion"),
    "rl": (
        "prompt",
        "question_answer",
        "question_reference",
        "preference",
        "messages",
        "instruction",
        "prompt_completion",
    ),
    "pretrain": ("text",),
}
#: Which models a recipe can tune besides those for generation.
BASE_TASKS = {"seq2seq": ("generation", "seq2seq"), "classify": ("generation", "classification")}


def access_base(actor: Actor, base_model: UUID | str | None, recipe: str) -> ModelVersion | None:
    """The base to tune: a full model version. Raises Invalid, NotFound, Conflict."""
    if base_model is None:
        if recipe == "pretrain":
            return None
        raise Invalid("base_model is required: the id of a model version.", code="required", field="base_model")
    base = access_model_version(actor, base_model, field="base_model")
    require_usable(base, field="base_model")
    if base.format != "full":
        raise Invalid(
            f"base_model {base} is an adapter. Tune its base {base.base_version} instead, or merge it first.",
            code="bad_value",
            field="base_model",
        )
    tasks = BASE_TASKS.get(recipe, ("generation",))
    require_task(base, *tasks, purpose=f"the recipe {recipe}", field="base_model")
    return base


def check_base_fits(hyperparameters: Mapping[str, Any], base: ModelVersion | None) -> None:
    """An encoder-decoder makes a target in one piece. Raises Invalid (``conflicting_fields``)."""
    if base is not None and base.task == "seq2seq" and hyperparameters.get("length_policy") == "split":
        message = f"length_policy split needs a causal base, and {base} is an encoder-decoder; use truncate or drop."
        raise Invalid(message, code="conflicting_fields", field="hyperparameters.length_policy")


def check_validation_fits(hyperparameters: Mapping[str, Any], validation: DatasetVersion | None) -> None:
    """What compares validation losses needs data to have one on. Raises Invalid (``required``)."""
    for name in COMPARING:
        if validation is None and hyperparameters.get(name) and "algorithm" not in hyperparameters:  # rl has rewards
            message = f"hyperparameters.{name} compares validation losses: give a validation_dataset, or leave it out."
            raise Invalid(message, code="required", field="validation_dataset")


def check_processes_fit(hyperparameters: Mapping[str, Any], num_gpus: int) -> None:
    """GRPO and RLOO share the answers of a step evenly. Raises Invalid (``conflicting_fields``)."""
    if num_gpus < 2 or hyperparameters.get("algorithm") not in ("grpo", "rloo"):
        return
    prompts, answers = hyperparameters["rollout_batch_size"], hyperparameters["num_generations"]
    if not even_prompts(prompts, answers, num_gpus):
        message = (
            f"resources: {num_gpus} GPUs can not share {prompts} prompts with {answers} answers each evenly. "
            "Raise rollout_batch_size or num_generations, or ask for fewer GPUs."
        )
        raise Invalid(message, code="conflicting_fields", field="resources")


def access_training_data(actor: Actor, version_id: UUID | str, recipe: str, *, field: str) -> DatasetVersion:
    """A dataset version whose columns fit the recipe. Raises NotFound, Invalid (``missing_column``)."""
    version = access_dataset_version(actor, version_id, field=field)
    if version.kind not in DATA_KINDS[recipe]:
        raise Invalid(
            f"{field}: the recipe {recipe} takes rows of the kinds {', '.join(DATA_KINDS[recipe])}; "
            f"{version} holds {version.kind}. Rename its columns accordingly.",
            code="missing_column",
            field=field,
        )
    return version


def access_reward(
    actor: Actor, reward_model: UUID | str | None, recipe: str, hyperparameters: Mapping[str, Any]
) -> ModelVersion | None:
    """The reward model of a task for reinforcement learning. Raises Invalid, NotFound, Conflict."""
    is_wanted = hyperparameters.get("reward_function") == "reward_model"
    if reward_model is None:
        if is_wanted:
            message = "reward_model is required: the id of a version for reward, or choose a rule as reward_function."
            raise Invalid(message, code="required", field="reward_model")
        return None
    if not is_wanted:
        message = "reward_model is taken by the recipe rl with reward_function reward_model only; leave it out."
        raise Invalid(message, code="unknown_field", field="reward_model")
    version = access_model_version(actor, reward_model, field="reward_model")
    require_usable(version, field="reward_model")
    require_task(version, "reward", purpose=f"the reward of {recipe}", field="reward_model")
    return version


def check_loss_fits(hyperparameters: Mapping[str, Any], data: DatasetVersion | None, field: str) -> None:
    """Single replies with verdicts have no pairs: only KTO learns from them; rl measures its reward on the way.

    Raises Invalid (``missing_column``, ``unknown_field``).
    """
    if field == "validation_dataset" and data is not None and "algorithm" in hyperparameters:
        message = "validation_dataset: rl measures its reward on the way and takes none; leave it out."
        raise Invalid(message, code="unknown_field", field=field)
    loss = hyperparameters.get("loss_type", "kto")
    if data is not None and data.kind == "binary_preference" and loss != "kto":
        raise Invalid(
            f"{field}: {data} holds single replies with a label; loss_type {loss} needs prompt, chosen and rejected. "
            "Use loss_type kto.",
            code="missing_column",
            field=field,
        )


def checked_hyperparameters(recipe: str, method: str, given: Mapping[str, Any], *, has_base: bool) -> dict[str, Any]:
    """All knobs of the recipe, with defaults. Raises InvalidFields with every problem."""
    try:
        return check_hyperparameters(recipe, method, given, has_base=has_base)
    except HyperparametersInvalid as error:
        problems = []
        for problem in error.problems:
            is_choice = problem.code == "not_a_choice" and problem.field in ("recipe", "method")
            field = problem.field if is_choice else f"hyperparameters.{problem.field}"
            problems.append(FieldProblem(field, problem.code, f"{field}: {problem.message}."))
        raise InvalidFields(problems) from error
