"""What a model version declares to be settable: name, type, default, range, and whether users may change it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clavier.core.errors import FieldProblem, Invalid, InvalidFields, quoted
from runner.contract.knob_values import BadValue, Knob, KnobType, read_value

TYPES: dict[str, KnobType] = {"int": "int", "float": "float", "bool": "bool", "str": "str"}
KEYS = ("name", "type", "value", "range", "is_editable", "description")
MAX_DECLARATIONS = 100
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def checked_declarations(given: Sequence[Mapping[str, Any]], *, field: str = "declarations") -> list[dict[str, Any]]:
    """``[{name, type, value, range, is_editable, description}]`` with sound defaults. Raises InvalidFields.

    ``range``: lowest and highest number, or the words allowed; empty: anything of the type.
    """
    if len(given) > MAX_DECLARATIONS:
        message = f"{field}: {len(given)} given; {MAX_DECLARATIONS} are allowed."
        raise Invalid(message, code="too_many", field=field)
    found: list[dict[str, Any]] = []
    problems: list[FieldProblem] = []
    for place, one in enumerate(given):
        try:
            found.append(checked_declaration(one, f"{field}[{place}]"))
        except Invalid as refusal:
            problems.append(FieldProblem(refusal.field or field, refusal.code, refusal.message))
    names = [one["name"] for one in found]
    problems += [
        FieldProblem(field, "duplicate_key", f"{field}: {name} is declared {names.count(name)} times.")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise InvalidFields(problems)
    return found


def checked_declaration(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One declaration. Raises Invalid."""
    if not isinstance(given, Mapping) or set(given) - set(KEYS):
        raise Invalid(f"{place} is not {{{', '.join(KEYS)}}}.", code="wrong_type", field=place)
    name, kind = given.get("name"), given.get("type") or "str"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{place}.name {quoted(name)}: letters, digits and '_' are allowed, no digit first."
        raise Invalid(message, code="bad_name", field=f"{place}.name")
    if kind not in TYPES:
        message = f"{place}.type {quoted(kind)} is none of {', '.join(TYPES)}."
        raise Invalid(message, code="not_a_choice", field=f"{place}.type")
    bounds = given.get("range") or []
    if not isinstance(bounds, list) or (kind in ("int", "float") and bounds and not is_interval(bounds)):
        message = f"{place}.range {quoted(bounds)}: the lowest and the highest number, or a list of words."
        raise Invalid(message, code="wrong_type", field=f"{place}.range")
    declared = {
        "name": name,
        "type": kind,
        "value": None,
        "range": bounds,
        "is_editable": given.get("is_editable", True) is not False,
        "description": str(given.get("description") or ""),
    }
    if given.get("value") not in (None, ""):
        declared["value"] = read(declared, given["value"], f"{place}.value")
    return declared


def with_declared(
    declarations: Sequence[Mapping[str, Any]], given: Mapping[str, Any], *, field: str = "hyperparameters"
) -> dict[str, Any]:
    """The given values with the declared defaults where nothing is given. Undeclared values stay as they are.

    Raises InvalidFields: ``not_settable`` for another value than a fixed one, ``out_of_range``, ``wrong_type`` ...
    """
    values = dict(given)
    problems = []
    for one in declarations:
        name = one["name"]
        if name not in values:
            if one["value"] is not None:
                values[name] = one["value"]
            continue
        try:
            value = read(one, values[name], f"{field}.{name}")
        except Invalid as refusal:
            problems.append(FieldProblem(refusal.field or field, refusal.code, refusal.message))
            continue
        if not one["is_editable"] and value != one["value"]:
            message = f"{field}: {name} is fixed to {quoted(one['value'])} by the model version."
            problems.append(FieldProblem(f"{field}.{name}", "not_settable", message))
    if problems:
        raise InvalidFields(problems)
    return values


def read(declared: Mapping[str, Any], value: Any, place: str) -> Any:
    """A value in its declared type and range. Raises Invalid."""
    kind, bounds = TYPES[declared["type"]], declared["range"]
    if kind == "str":
        if not isinstance(value, str) or (bounds and value not in [str(word) for word in bounds]):
            allowed = f" of {', '.join(map(str, bounds))}" if bounds else ""
            message = f"{place} {quoted(value)} is no text{allowed}."
            raise Invalid(message, code="not_a_choice" if bounds else "wrong_type", field=place)
        return value
    lowest, highest = bounds if bounds and kind != "bool" else (None, None)
    try:
        return read_value(Knob(declared["name"], kind, None, "", "", lowest, highest), value)
    except BadValue as refusal:
        raise Invalid(f"{place}: {refusal}.", code=refusal.code, field=place) from refusal


def is_interval(bounds: list[Any]) -> bool:
    """Two numbers, the lower first."""
    numbers = [bound for bound in bounds if isinstance(bound, int | float) and not isinstance(bound, bool)]
    return len(bounds) == len(numbers) == 2 and numbers[0] <= numbers[1]
