"""What a task of a recipe is made of, looked up and checked all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from clavier.accounts.access import creator_of
from clavier.core.actor import Actor
from clavier.core.problems import Problems
from clavier.runs import commands
from clavier.runs.options import checked_options
from clavier.runs.services import checked_resources
from finetune_app.checks import (
    DATA_KINDS,
    access_base,
    access_reward,
    access_training_data,
    check_base_fits,
    check_loss_fits,
    check_processes_fit,
    check_validation_fits,
    checked_hyperparameters,
)
from finetune_app.models import FineTuneTask
from finetune_app.profile import check_saving
from finetune_app.tokenizers import checked_tokenizer


def checked_ingredients(
    actor: Actor,
    problems: Problems,
    *,
    recipe: str,
    method: str,
    train_dataset: UUID | str,
    base_model: UUID | str | None = None,
    validation_dataset: UUID | str | None = None,
    reward_model: UUID | str | None = None,
    tokenizer: str = "",
    hyperparameters: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    may_lack_reward: bool = False,
) -> dict[str, Any]:
    """Columns of a FineTuneTask; only those that say something once ``problems``, to which refusals go, is empty.

    ``options``: resource group, nodes, roles, priority (``runs.options``). ``tokenizer``: of a new model, a file or
    folder of the actor's.
    ``may_lack_reward``: a reward model that the hyperparameters ask for may still be missing.
    """
    knobs = problems.check(
        checked_hyperparameters, recipe, method, hyperparameters or {}, has_base=base_model is not None
    )
    where = problems.check(checked_options, options or {}) or {}
    group = where.get("resource_group", "")
    made: dict[str, Any] = {
        "recipe": recipe,
        "method": method,
        "hyperparameters": knobs,
        "options": where,
        "resources": problems.check(checked_resources, resources or {}, resource_group=group) or {},
    }
    if recipe not in DATA_KINDS:  # which was told with the hyperparameters
        return made
    made["base_version"] = base = problems.check(access_base, actor, base_model, recipe)
    made |= {"train_dataset": None, "validation_dataset": None}
    for field, version in (("train_dataset", train_dataset), ("validation_dataset", validation_dataset or None)):
        if version is not None:
            made[field] = problems.check(access_training_data, actor, version, recipe, field=field)
    if base is not None or base_model is None:
        made["tokenizer"] = problems.check(checked_tokenizer, actor, tokenizer, recipe, base) or ""
    if knobs is not None:
        if reward_model is not None or not may_lack_reward:
            made["reward_version"] = problems.check(access_reward, actor, reward_model, recipe, knobs)
        problems.check(check_base_fits, knobs, base)
        for field in ("train_dataset", "validation_dataset"):
            problems.check(check_loss_fits, knobs, made[field], field)
        if not validation_dataset:
            problems.check(check_validation_fits, knobs, None)
        problems.check(check_processes_fit, knobs, made["resources"].get("gpus", 0))
    return made


def recheck(task: FineTuneTask) -> None:
    """Check a task that was changed as one that is made, for its creator, whose files it may read.

    Its hyperparameters and resources get their defaults. Raises as the creation does.
    """
    problems = Problems()
    if task.create_way == "custom":
        values = problems.check(commands.checked_hyperparameters, task.hyperparameters)
        wants_checkpoints = bool(task.own_code.get("checkpoint_folder"))
        problems.check(check_saving, values or {}, wants_checkpoints=wants_checkpoints)
        group = task.options.get("resource_group", "")
        booked = problems.check(checked_resources, task.resources, resource_group=group)
        made = {"hyperparameters": values, "resources": booked}
    else:
        made = checked_ingredients(
            creator_of(task),
            problems,
            recipe=task.recipe,
            method=task.method,
            train_dataset=task.train_dataset_id or "",
            base_model=task.base_version_id,
            validation_dataset=task.validation_dataset_id,
            reward_model=task.reward_version_id,
            tokenizer=task.tokenizer,
            hyperparameters=task.hyperparameters,
            resources=task.resources,
            options=task.options,
        )
    problems.end()
    task.hyperparameters, task.resources = made["hyperparameters"], made["resources"]
