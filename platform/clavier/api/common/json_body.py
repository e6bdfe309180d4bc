"""Request bodies: JSON as RFC 8259 means it, without doubled keys, NaN, lone surrogates or bottomless nesting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework.parsers import BaseParser

from clavier.core.errors import Invalid, TooLarge, quoted
from datasets_app.strict_json import depth_of, find_string

MAX_BODY_BYTES = 16 * 2**20
MAX_DEPTH = 100
#: Python reads integers of up to 4,300 digits; nothing here needs more than 64 bits.
MAX_INTEGER_DIGITS = 40
_SURROGATE = re.compile("[\ud800-\udfff]")


class StrictJsonParser(BaseParser):
    """The only parser of JSON bodies. Raises TooLarge, Invalid (``malformed_json``, ``duplicate_key``, ...)."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """The body as an object; an empty body is an empty object."""
        data = stream.read(MAX_BODY_BYTES + 1)
        if len(data) > MAX_BODY_BYTES:
            raise TooLarge("The body is larger than 16 MiB. Upload large data as a file.")
        value = parse_json(data) if data.strip() else {}
        if not isinstance(value, dict):
            raise Invalid(f"The body must be a JSON object {{...}}, this is {quoted(value, 60)}.", code="wrong_type")
        return value


class _Huge:
    """An integer too long to be read."""

    def __init__(self, text: str) -> None:
        self.text = text


class _Reader:
    """Collects what a JSON text must not have while it is decoded."""

    def __init__(self) -> None:
        self.has_huge = False

    def decode(self, text: str) -> Any:
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._integer,
            parse_float=self._float,
        )
        return decoder.decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            raise Invalid(
                f"{quoted(doubled)} comes twice in one object. Send it once.", code="duplicate_key", field=doubled
            )
        return value

    def _constant(self, word: str) -> NoReturn:
        raise Invalid(f"{word} is no JSON number. Send a finite number or null.", code="malformed_json")

    def _integer(self, text: str) -> Any:
        if len(text) <= MAX_INTEGER_DIGITS:
            return int(text)
        self.has_huge = True
        return _Huge(text)

    def _float(self, text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise Invalid(f"The number {quoted(text, 40)} is too large for a 64-bit float.", code="out_of_range")
        return value


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises Invalid with line and column where there is one."""
    reader = _Reader()
    try:
        value = reader.decode(data.decode())
    except UnicodeDecodeError as fault:
        raise Invalid(f"The body is not UTF-8: byte {fault.start + 1}.", code="malformed_json") from fault
    except json.JSONDecodeError as fault:
        message = f"The body is no JSON: line {fault.lineno}, column {fault.colno}: {fault.msg}."
        raise Invalid(message, code="malformed_json") from fault
    except RecursionError as fault:
        raise too_deep() from fault
    if depth_of(value) > MAX_DEPTH:
        raise too_deep()
    if reader.has_huge:
        field, huge = find_huge(value)
        raise Invalid(
            f"{field}: the number {quoted(huge.text, 40)} has {len(huge.text):,} digits, which is too large.",
            code="out_of_range",
            field=field,
        )
    if b"\\u" in data and find_string(value, _SURROGATE) is not None:
        raise half_a_pair(value)
    return value


def half_a_pair(value: Any) -> Invalid:
    """The refusal of a lone surrogate; names the top field that has it, where there is one."""
    fields = value.items() if isinstance(value, dict) else ()
    field = next((key for key, item in fields if find_string(item, _SURROGATE) is not None), None)
    message = "a text has half of a surrogate pair (\\uD800 to \\uDFFF)."
    return Invalid(f"{field or 'The body'}: {message}", code="malformed_json", field=field)


def too_deep() -> Invalid:
    """The refusal of nesting."""
    return Invalid(f"The body is nested deeper than {MAX_DEPTH} levels.", code="too_deep")


def find_huge(value: Any) -> tuple[str, _Huge]:
    """The path of the first integer that was too long to be read, and it. ``value`` has one."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop(0)
        if isinstance(item, _Huge):
            return path.removesuffix("."), item
        if isinstance(item, dict):
            waiting += [(f"{path}{name}.", inner) for name, inner in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{path}{number}.", inner) for number, inner in enumerate(item)]
    raise ValueError("there is none")
