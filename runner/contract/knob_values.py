"""What a hyperparameter is, and how a given value becomes one of its type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

KnobType = Literal["int", "float", "bool", "str", "list"]

MAX_TEXT_CHARACTERS = 1000
#: Recipe -> its methods.
RECIPES: dict[str, tuple[str, ...]] = {
    "sft": ("full", "lora", "qlora"),
    "preference": ("full", "lora", "qlora"),
    "reward": ("full", "lora"),
    "classify": ("full", "lora"),
    "seq2seq": ("full", "lora"),
    "rl": ("full", "lora"),
    "pretrain": ("full",),
}


@dataclass(frozen=True, slots=True)
class Knob:
    """One hyperparameter. ``recipes``: who takes it (default: all); ``methods``: () means all; ``default`` None means
    "not set". ``narrow_choices``: (choice, recipes that take it) where not all do; ``counts_with``: (another knob, its
    values) without which this one changes nothing."""

    name: str
    type: KnobType
    default: Any
    help_en: str
    help_zh: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    recipes: tuple[str, ...] = tuple(RECIPES)
    methods: tuple[str, ...] = ()
    narrow_choices: tuple[tuple[str, tuple[str, ...]], ...] = ()
    counts_with: tuple[str, tuple[str, ...]] | None = None

    def takers_of(self, choice: str) -> tuple[str, ...]:
        """The recipes that take one of the choices."""
        return dict(self.narrow_choices).get(choice, self.recipes)

    def for_recipe(self, recipe: str) -> Knob:
        """The knob with the choices that the recipe takes."""
        return replace(self, choices=tuple(choice for choice in self.choices if recipe in self.takers_of(choice)))

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Whether the knob changes anything beside the values of the others."""
        return self.counts_with is None or str(values.get(self.counts_with[0])) in self.counts_with[1]


class BadValue(ValueError):
    """A value that is not allowed, with the stable machine word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_value(knob: Knob, value: Any) -> Any:
    """A given value in the knob's type. Raises BadValue (wrong_type, not_a_choice, out_of_range)."""
    if value is None:
        return list(knob.default) if knob.type == "list" else knob.default
    if knob.type == "bool":
        return _read_bool(value)
    if knob.type == "list":
        return _read_list(value)
    if knob.type == "str" and not knob.choices:
        return _read_text(value)
    if knob.type == "str":
        if value not in knob.choices:
            raise BadValue("not_a_choice", f"{_shown(value)} is not one of {', '.join(knob.choices)}")
        return value
    number = _read_number(value, whole=knob.type == "int")
    if knob.choices and str(number) not in knob.choices:
        raise BadValue("not_a_choice", f"{_shown(value)} is not one of {', '.join(knob.choices)}")
    if (knob.minimum is not None and number < knob.minimum) or (knob.maximum is not None and number > knob.maximum):
        unit = f" {knob.unit}" if knob.unit else ""
        raise BadValue("out_of_range", f"{value} is outside {_plain(knob.minimum)} to {_plain(knob.maximum)}{unit}")
    return number


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
        raise BadValue("wrong_type", f"needs a text of at most {MAX_TEXT_CHARACTERS} characters, got {_shown(value)}")
    return value


def _read_number(value: Any, *, whole: bool) -> int | float:
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadValue("wrong_type", f"needs {kind}, got {_shown(value)}")
    try:
        if whole and not isinstance(value, float):
            return int(value)  # never through float: 2**53 + 1 must stay itself
        number = float(value)
    except (ValueError, OverflowError):
        raise BadValue("wrong_type", f"needs {kind}, got {_shown(value)}") from None
    if not math.isfinite(number):
        raise BadValue("out_of_range", f"{value} is no finite number")
    if whole and not number.is_integer():
        raise BadValue("wrong_type", f"needs {kind}, got {_shown(value)}")
    return int(number) if whole else number


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise BadValue("wrong_type", f"needs true or false, got {_shown(value)}")


def _read_list(value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise BadValue("wrong_type", f"needs a list of names, got {_shown(value)}")
    names = [part.strip() for part in parts if part.strip()]
    if not names:
        raise BadValue("wrong_type", "needs at least one name")
    return names


def _plain(bound: float | None) -> str:
    if bound is None:
        return "any"
    return f"{bound:.0f}" if float(bound).is_integer() else f"{bound:g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
