"""JSON as RFC 8259 means it: no doubled keys, no NaN, no lone surrogates, no bottomless nesting."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from runner.contract.texts import CONTROL

MAX_DEPTH = 64
#: Escapes that may spell a control character or half of a surrogate pair; only then is a row looked through.
_SUSPECT_ESCAPE = re.compile(rb"\\u00[01]|\\u007[fF]|\\u[dD][89a-fA-F]|\\b")
#: One encoder for all rows: json.dumps() with options makes a new one each time.
encode_row = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class StrictJson:
    """A decoder that remembers what the last value had that JSON must not have."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, str]] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def faults(self) -> list[tuple[str, str]]:
        """(reason, message) of each fault since the last call."""
        if not self._faults:
            return []
        found, self._faults = self._faults, []
        return found

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1)
            self._faults.append(("duplicate_key", f"the key {doubled!r} comes twice in one object."))
        return value

    def _constant(self, word: str) -> None:
        self._faults.append(("not_finite", f"{word} is no JSON number. Use null or leave the key out."))

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._faults.append(("not_finite", f"the number {text[:40]} is too large for a 64-bit float."))
        return value


def row_faults(row: dict[str, Any], text: bytes) -> tuple[str, str] | None:
    """(reason, message) when a decoded row is too deep or has a lone surrogate; ``text`` is its JSON."""
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and depth_of(row) > MAX_DEPTH:
        return "too_deep", f"the row is nested more than {MAX_DEPTH} levels deep."
    if b"\\" in text and _SUSPECT_ESCAPE.search(text):
        surrogate = find_string(row, re.compile("[\ud800-\udfff]"))
        if surrogate is not None:
            return "lone_surrogate", "a text has a lone surrogate (half of a \\uD800-\\uDFFF pair)."
    return None


def has_control(row: dict[str, Any], text: bytes) -> bool:
    """Whether a text in the row has a control character: all come as escapes but DEL, which JSON takes as it is."""
    may_have = (b"\\" in text and _SUSPECT_ESCAPE.search(text) is not None) or b"\x7f" in text
    return may_have and find_string(row, CONTROL) is not None


def depth_of(value: Any) -> int:
    """How many levels of lists and objects a value has; 0 for a scalar."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def find_string(value: Any, pattern: re.Pattern[str]) -> str | None:
    """The first key or text in a value that the pattern is found in."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if pattern.search(item):
                return item
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return None
