"""The config.json of a user's training script, in the documented form: two lists of values and the strategy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clavier.core.actor import Actor
from clavier.core.errors import FieldProblem, Invalid, InvalidFields, quoted
from clavier.files.folders import own_row
from clavier.files.services import open_stored_file

MAX_PROFILE_BYTES = 1024 * 1024
COMMON, FINE_TUNE, STRATEGY = "commonHyperParameters", "fineTuneHyperParameters", "fineTuneStrategy"
#: The strategies of the form, and what this platform calls them.
METHOD_OF_STRATEGY = {"LoRA": "lora", "QLoRA": "qlora", "FineTune": "full"}
STRATEGY_OF_METHOD = {method: strategy for strategy, method in METHOD_OF_STRATEGY.items()}
SAVE_STRATEGIES = ("no", "steps", "epoch")


@dataclass(frozen=True, slots=True)
class Profile:
    """``values``: name -> value as written. ``fine_tune_names``: those of the second list. ``method``: "" if unsaid."""

    values: dict[str, Any] = field(default_factory=dict)
    fine_tune_names: tuple[str, ...] = ()
    method: str = ""


def read_profile(actor: Actor, location: str, *, field: str = "profile_path") -> Profile:
    """The profile in the actor's own files. Raises NotFound, Invalid, InvalidFields."""
    row = own_row(actor, location, field=field)
    if row.size_bytes > MAX_PROFILE_BYTES:
        message = f"{field} {quoted(location)} has {row.size_bytes:,} bytes; {MAX_PROFILE_BYTES:,} are allowed."
        raise Invalid(message, code="too_long", field=field)
    with open_stored_file(actor=actor, file=row) as stream:
        content = stream.read(MAX_PROFILE_BYTES + 1)
    profile = parse_profile(content, field=field)
    folder = row.path.split("/")[-2] if "/" in row.path else ""
    meant = {name.lower(): method for name, method in METHOD_OF_STRATEGY.items()}.get(folder.lower())
    if meant and profile.method and meant != profile.method:
        raise Invalid(
            f"{field} {quoted(location)}: its {STRATEGY} is {STRATEGY_OF_METHOD[profile.method]}, but it lies in the "
            f"folder {folder}. Move it, or correct {STRATEGY}.",
            code="conflicting_fields",
            field=field,
        )
    return profile


def parse_profile(content: bytes, *, field: str = "profile_path") -> Profile:
    """The profile of a file's bytes. Raises Invalid (``malformed_json``, ``wrong_type``, ``duplicate_key`` ...)."""
    value = parse_object(content, field)
    values: dict[str, Any] = {}
    names: dict[str, list[str]] = {COMMON: [], FINE_TUNE: []}
    problems: list[FieldProblem] = []
    unknown = sorted(set(value) - {COMMON, FINE_TUNE, STRATEGY})
    if unknown:
        message = f"{field}: {quoted(unknown[0])} is none of {COMMON}, {FINE_TUNE}, {STRATEGY}."
        problems.append(FieldProblem(field, "unknown_field", message))
    for part in names:
        entries = value.get(part)
        for place, entry in enumerate(entries if isinstance(entries, list) else [entries] if entries else []):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "value" not in entry:
                message = f"{field}: {part}[{place}] is not {{name, value, description}}."
                problems.append(FieldProblem(field, "wrong_type", message))
            elif entry["name"] in values:
                message = f"{field}: {part}[{place}] gives {quoted(entry['name'])} a second time."
                problems.append(FieldProblem(field, "duplicate_key", message))
            else:
                values[entry["name"]] = entry["value"]
                names[part].append(entry["name"])
    strategy = value.get(STRATEGY) or ""
    if strategy and strategy not in METHOD_OF_STRATEGY:
        message = f"{field}: {STRATEGY} {quoted(strategy)} is none of {', '.join(METHOD_OF_STRATEGY)}."
        problems.append(FieldProblem(field, "not_a_choice", message))
    if problems:
        raise InvalidFields(problems)
    return Profile(values, tuple(names[FINE_TUNE]), METHOD_OF_STRATEGY.get(strategy, ""))


def profile_text(values: Mapping[str, str], fine_tune_names: Iterable[str], method: str) -> str:
    """The config.json of a run: every value as text, in the list that it belongs to."""
    special = special_names(values, fine_tune_names)
    lists: dict[str, list[dict[str, str]]] = {COMMON: [], FINE_TUNE: []}
    for name, value in values.items():
        lists[FINE_TUNE if name in special else COMMON].append({"name": name, "value": value})
    return json.dumps({**lists, STRATEGY: STRATEGY_OF_METHOD.get(method, "")}, ensure_ascii=False, indent=1)


def special_names(values: Iterable[str], fine_tune_names: Iterable[str]) -> set[str]:
    """The names that belong to the second list: those of a profile's, and those of adapters."""
    return {*fine_tune_names, *(name for name in values if name.startswith(("lora_", "target_modules")))}


def check_saving(values: Mapping[str, str], *, wants_checkpoints: bool) -> None:
    """Checkpoints need both save_strategy and save_steps. Raises InvalidFields (``required``, ``out_of_range`` ...)."""
    problems = []
    missing = [name for name in ("save_strategy", "save_steps") if not values.get(name)]
    if wants_checkpoints and missing:
        message = "Checkpoints need save_strategy (steps, epoch) and save_steps (>= 1) among the hyperparameters."
        problems += [FieldProblem(f"hyperparameters.{name}", "required", message) for name in missing]
    strategy, steps = values.get("save_strategy"), values.get("save_steps")
    if strategy and strategy not in SAVE_STRATEGIES:
        message = f"hyperparameters: save_strategy {quoted(strategy)} is none of {', '.join(SAVE_STRATEGIES)}."
        problems.append(FieldProblem("hyperparameters.save_strategy", "not_a_choice", message))
    if steps and not (steps.isascii() and steps.isdigit() and int(steps[:18]) >= 1):
        message = f"hyperparameters: save_steps {quoted(steps)} is no whole number >= 1."
        problems.append(FieldProblem("hyperparameters.save_steps", "out_of_range", message))
    if problems:
        raise InvalidFields(problems)


def parse_object(content: bytes, field: str) -> dict[str, Any]:
    """A JSON object without doubled keys, NaN or bottomless nesting. Raises Invalid."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise Invalid(f"{field}: the key {quoted(double)} comes twice.", code="duplicate_key", field=field)
        return dict(pairs)

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{field} is no JSON: {error}.", code="malformed_json", field=field) from error
    if not isinstance(value, dict):
        raise Invalid(f"{field} holds no JSON object {{...}}.", code="wrong_type", field=field)
    return value
