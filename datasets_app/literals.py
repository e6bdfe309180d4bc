"""The parameter string of document 000's data sets: ``{'rows': 100, 'style': 'a'}``, read as a literal, never run."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

from clavier.core.errors import Invalid

MAX_CHARACTERS = 65_536
#: Deeper text is refused before it reaches the parser; parameters are plain values.
MAX_BRACKETS = 64


def parameters_of_text(text: str, field: str = "parameters") -> dict[str, Any]:
    """Names and plain values of a JSON object or a Python dict literal; an empty string has none.

    Raises Invalid: ``too_large``, ``bad_literal`` (with the place), ``wrong_type`` for what is no flat dict.
    """
    if len(text) > MAX_CHARACTERS:
        raise Invalid(
            f"{field} has {len(text):,} characters; {MAX_CHARACTERS:,} are read.", code="too_large", field=field
        )
    if not text.strip():
        return {}
    value = _value_of(text.strip(), field)
    if not isinstance(value, dict):
        raise _wrong(field, f"is a {type(value).__name__}")
    for name, each in value.items():
        if not isinstance(name, str):
            raise _wrong(field, f"has the name {str(name)[:40]!r}, which is no text")
        if each is not None and not isinstance(each, str | int | float):
            raise _wrong(field, f"has a {type(each).__name__} under {name[:40]!r}")
    return value


def _value_of(text: str, field: str) -> Any:
    """Raises Invalid (``bad_literal``)."""
    if sum(map(text.count, "([{")) > MAX_BRACKETS:
        raise _bad(field, f"more than {MAX_BRACKETS} opening brackets")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass  # not JSON: then as the document writes it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash that means nothing is no business of the log
            return ast.literal_eval(text)
    except SyntaxError as error:
        raise _bad(field, f"{error.msg} at character {error.offset or 1} of line {error.lineno or 1}") from None
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise _bad(field, "it computes, calls or nests, and only names with plain values are read") from None


def _bad(field: str, why: str) -> Invalid:
    return Invalid(f"{field} can not be read: {why}. {_FORM}", code="bad_literal", field=field)


def _wrong(field: str, what: str) -> Invalid:
    return Invalid(f"{field} {what}. {_FORM}", code="wrong_type", field=field)


_FORM = "Write {'name': 'value', 'number': 1}: texts, numbers, True, False or None in one pair of braces."
