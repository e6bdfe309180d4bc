"""Tasks and searches from a YAML training configuration: its names become the tenant's models and data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from clavier.core.actor import Actor
from clavier.core.errors import Invalid, NotFound, TooLarge, quoted
from clavier.core.problems import Problems
from clavier.core.yaml_text import MAX_YAML_BYTES
from clavier.files.folders import named_file
from clavier.files.services import open_stored_file
from datasets_app.queries import version_called as data_called
from finetune_app.checks import checked_hyperparameters
from finetune_app.models import FineTuneTask
from finetune_app.sampling import checked_space
from finetune_app.search import create_search
from finetune_app.services import create_fine_tune_task
from finetune_app.train_config import TrainConfig, read_train_config
from models_app.models import ModelVersion
from models_app.queries import version_called as model_called
from runner.contract.knobs import ADAPTER_METHODS
from runner.contract.measures import is_better_large

MAX_NAME_CHARACTERS = 100
#: How far from the file's learning rate a search looks where the file has no ``space``, and which ranks it tries.
RATE_FACTOR = 10.0
RANKS = [8, 16, 32]


#: ``(actor, name, field=)``: the model that scores in a service of that name; inference_app has one.
FindScorer = Callable[..., ModelVersion]


@dataclass(frozen=True, slots=True)
class Configured:
    """``task``: what ``create_fine_tune_task`` takes. ``search``: what ``create_search`` takes besides, or empty."""

    task: dict[str, Any]
    search: dict[str, Any] = field(default_factory=dict)


def create_from_config(
    *,
    actor: Actor,
    find_scorer: FindScorer,
    config: str = "",
    config_file: str = "",
    resources: Mapping[str, Any] | None = None,
    start: bool = True,
    **beside: Any,
) -> FineTuneTask:
    """The task that a YAML text, or a file of the actor's, describes; of a search, the task of its first trial.

    ``beside``: name, description, output_model_name, options, time_limit_s, which win over the file's.
    Raises as ``read_train_config``, ``create_fine_tune_task`` and ``create_search`` do.
    """
    text = config_text(actor, config, config_file)
    made = configured(actor, text, find_scorer=find_scorer, field="config_file" if config_file else "config")
    task = {**made.task, **{name: value for name, value in beside.items() if value not in (None, "")}}
    task["resources"] = joined_resources(made.task["resources"], resources or {})
    if not made.search:
        return create_fine_tune_task(actor=actor, config=text, start=start, **task)
    if not start:
        message = "start: hyperparameter_tuning starts its trials at once; leave start out, or turn the tuning off."
        raise Invalid(message, code="conflicting_fields", field="start")
    if task.pop("output_model_name") not in ("", task["name"]):
        message = "output_model_name: the trials of a search make versions of the model that is named like the search."
        raise Invalid(message, code="not_honoured", field="output_model_name")
    with transaction.atomic():
        search = create_search(actor=actor, config=text, **task, **made.search)
    return FineTuneTask.objects.select_related("run").get(search_trial__search=search, search_trial__number=1)


def config_text(actor: Actor, config: str, config_file: str) -> str:
    """The YAML itself, or that of a file in the actor's own files. Raises Invalid, NotFound, TooLarge."""
    if config and config_file:
        message = "config_file: give config, the text, or config_file, a file of yours; not both."
        raise Invalid(message, code="conflicting_fields", field="config_file")
    if not config_file:
        return config
    row = named_file(actor, config_file, field="config_file")
    if row.size_bytes > MAX_YAML_BYTES:
        message = f"config_file has {row.size_bytes:,} bytes; {MAX_YAML_BYTES:,} are allowed."
        raise TooLarge(message, code="too_long", field="config_file")
    with open_stored_file(actor=actor, file=row) as stream:
        content = stream.read(MAX_YAML_BYTES + 1)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"config_file {quoted(config_file)} is not UTF-8: byte {error.start + 1}."
        raise Invalid(message, code="bad_encoding", field="config_file") from error


def configured(actor: Actor, text: str, *, find_scorer: FindScorer, field: str = "config") -> Configured:
    """What a YAML text asks for, its names resolved among what the actor's tenant has.

    Raises as ``read_train_config`` does; InvalidFields with every key that names nothing of use, NotFound.
    """
    read = read_train_config(text, field=field)
    problems = Problems()
    base = base_of(actor, read, problems)
    data = {}
    for name, argument in (("dataset", "train_dataset"), ("validation_dataset", "validation_dataset")):
        if name in read.names:
            data[argument] = problems.check(data_called, actor, read.names[name], field=read.keys[name])
    if "dataset" not in read.names:
        problems.add("dataset", "required", "dataset is required: the name of a data set, or the path of its file.")
    reward = problems.check(reward_of, actor, read, find_scorer)
    problems.end()
    called = base.model.name if base else read.names.get("model_name", "")
    task = {
        "name": read.names.get("name") or "-".join(filter(None, (read.recipe, called)))[:MAX_NAME_CHARACTERS],
        "output_model_name": read.names.get("output_model_name") or ("" if base else called),
        "recipe": read.recipe,
        "method": read.method,
        "base_model": base.pk if base else None,
        "reward_model": reward.pk if reward else None,
        "tokenizer": read.names.get("tokenizer", ""),
        "hyperparameters": read.hyperparameters,
        "resources": {"gpus": read.num_gpus} if read.num_gpus else {},
        **{argument: version.pk for argument, version in data.items() if version},
    }
    return Configured(task, search_of(read) if read.search else {})


def base_of(actor: Actor, read: TrainConfig, problems: Problems) -> ModelVersion | None:
    """The model to tune. A pretraining of a name that no model has makes a new one of that name."""
    called, key = read.names.get("model_name"), read.keys.get("model_name", "model_name")
    if called is None:
        if read.recipe != "pretrain":
            problems.add(key, "required", "model_name is required: the name of a registered model.")
        return None
    try:
        return model_called(actor, called, field=key)
    except NotFound as missing:
        if read.recipe != "pretrain":
            problems.check(_again, missing)
    except Invalid as refusal:
        problems.check(_again, refusal)
    return None


def reward_of(actor: Actor, read: TrainConfig, find_scorer: FindScorer) -> ModelVersion | None:
    """The model that pays: a registered one, or that of a service, which ``reward_model`` may name too.

    Raises NotFound, Invalid.
    """
    if "reward_service" in read.names:
        return find_scorer(actor, read.names["reward_service"], field=read.keys["reward_service"])
    called = read.names.get("reward_model")
    if called is None:
        return None
    key = read.keys["reward_model"]
    try:
        return model_called(actor, called, field=key)
    except NotFound as no_model:
        try:
            return find_scorer(actor, called, field=key)
        except NotFound:
            raise no_model from None


def search_of(read: TrainConfig) -> dict[str, Any]:
    """What ``create_search`` takes besides the task; a file without ``space`` searches what matters most."""
    found = dict(read.search)
    if "space" not in found:
        rate = read.hyperparameters["learning_rate"]
        found["space"] = {
            "learning_rate": {"low": rate / RATE_FACTOR, "high": min(1.0, rate * RATE_FACTOR), "log": True},
            **({"lora_r": {"choices": RANKS}} if read.method in ADAPTER_METHODS else {}),
        }
    return {**found, "maximize": is_better_large(found["metric"])}


def joined_resources(told: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Resources with the GPUs that the file names. Raises Invalid (``conflicting_fields``)."""
    gpus = told.get("gpus")
    if gpus and asked.get("gpus", gpus) != gpus:
        message = (
            f"resources.gpus {asked['gpus']}: the configuration asks for {gpus} GPUs; give the same, or leave it out."
        )
        raise Invalid(message, code="conflicting_fields", field="resources.gpus")
    return {**told, **asked}


def still_says(
    actor: Actor,
    text: str,
    task: Mapping[str, Any],
    search: Mapping[str, Any] | None = None,
    *,
    find_scorer: FindScorer,
) -> bool:
    """Whether a configuration still describes what a form was changed to after it had been filled from it."""
    told = configured(actor, text, find_scorer=find_scorer)
    names = ("recipe", "method", "base_model", "train_dataset", "validation_dataset", "reward_model", "tokenizer")
    if any(_plain(told.task.get(name)) != _plain(task.get(name)) for name in names):
        return False
    ours, theirs = _search_facts(told.task, told.search), _search_facts(told.task, search or {})
    if ours != theirs:
        return False
    values = [_knobs(each, ours.get("space", {})) for each in (told.task, task)]
    return values[0] == values[1]


def _search_facts(task: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    if not search:
        return {}
    space = checked_space(task["recipe"], task["method"], search["space"])
    return {**{name: search[name] for name in ("num_trials", "metric", "maximize")}, "space": space}


def _knobs(task: Mapping[str, Any], tried: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters but those that a search tries."""
    has_base = bool(task.get("base_model"))
    checked = checked_hyperparameters(task["recipe"], task["method"], task["hyperparameters"], has_base=has_base)
    return {name: value for name, value in checked.items() if name not in tried}


def _again(refusal: Exception) -> None:
    raise refusal


def _plain(value: Any) -> str | None:
    return str(value) if value else None
