"""A JSON file that is one array of objects, read element by element through a sliding window."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any, NoReturn

from datasets_app.findings import Findings, StopReading
from datasets_app.formats import BOM, MAX_ROW_BYTES, MIB, Item, Row, json_type, not_utf8, too_large
from datasets_app.strict_json import StrictJson, encode_row, row_faults

_BLANK = re.compile(r"[ \t\r\n]*")
_DATA_KEY = re.compile(r'\{[ \t\r\n]*"data"[ \t\r\n]*:[ \t\r\n]*\[')


class JsonArray:
    """``[{...}, ...]`` or ``{"data": [{...}, ...]}``. Memory: a window of at most 16 MiB characters and a chunk."""

    is_canonical = False

    def __init__(self, stream: BufferedReader[Any], findings: Findings) -> None:
        self._stream = stream
        self._findings = findings
        self._strict = StrictJson()
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._window = ""
        self._at = 0
        self._at_end = False
        # The line number at _counted, and where in the window (or before it: negative) that line starts.
        self._line = 1
        self._line_start = 0
        self._counted = 0

    def __iter__(self) -> Iterator[Item]:
        is_wrapped = self._open()
        if self._next() == "]":
            self._at += 1
        else:
            while True:
                yield from self._element()
                sign = self._next()
                self._at += 1
                if sign == "]":
                    break
                if sign != ",":
                    self._at -= 1
                    self._stop("expected ',' or ']' after an element")
                if self._next() == "]":
                    self._stop("a comma before ']'")
        if is_wrapped:
            if self._next() != "}":
                self._stop("expected '}' after the array under 'data'")
            self._at += 1
        if self._next():
            self._stop("more text after the end")

    def _open(self) -> bool:
        """Go into the array; whether it lies under the key ``data``."""
        if self._stream.peek(3).startswith(BOM):
            self._stream.read(3)
        first = self._next()
        if not first:
            raise StopReading  # no text at all: the gate says that there are 0 rows
        if first == "[":
            self._at += 1
            return False
        while not self._at_end and len(self._window) - self._at < 4096:
            self._fill()
        wrapped = _DATA_KEY.match(self._window, self._at)
        if wrapped is None:
            message = 'the file must be an array of objects: [{...}, ...] or {"data": [{...}, ...]}.'
            sample = self._window[self._at : self._at + 200]
            self._findings.error(self._place()[0], message, code="wrong_type", reason="wrong_type", sample=sample)
            raise StopReading
        self._at = wrapped.end()
        return True

    def _element(self) -> Iterator[Item]:
        self._next()
        line, column = self._place()
        value = self._value()
        faults = self._strict.faults()
        if not isinstance(value, dict):
            message = f"each element must be an object {{...}}, this is {json_type(value)}."
            self._findings.error(line, message, column=column, reason="not_an_object", sample=value)
            return
        text = b"" if faults else self._canonical(value)
        fault = faults[0] if faults else row_faults(value, text)
        if fault:
            self._findings.error(line, fault[1], column=column, reason=fault[0], sample=value)
        elif len(text) > MAX_ROW_BYTES:
            too_large(self._findings, line, text[:200], column)
        else:
            yield line, value, text

    @staticmethod
    def _canonical(value: Row) -> bytes:
        try:
            return encode_row(value).encode()
        except UnicodeEncodeError:
            return json.dumps(value).encode()  # a lone surrogate, which row_faults() reports
        except RecursionError:
            return b"[" * 1000  # deeper than allowed, which row_faults() reports

    def _value(self) -> Any:
        """The value at the cursor; the window grows until it is whole."""
        while True:
            try:
                value, end = self._strict.decoder.raw_decode(self._window, self._at)
                if end < len(self._window) or self._at_end:
                    self._at = end
                    return value
                fault: ValueError | None = None
            except RecursionError:
                self._stop("an element is nested too deep", code="bad_row", reason="too_deep")
            except ValueError as error:
                fault = error
            self._strict.faults()
            can_grow = not self._at_end and (fault is None or self._is_cut(fault))
            if not can_grow or len(self._window) - self._at > MAX_ROW_BYTES:
                self._give_up(fault, can_grow)
            # Doubling keeps the time linear although each try starts anew.
            wanted = 2 * (len(self._window) - self._at)
            while not self._at_end and len(self._window) - self._at < wanted:
                self._fill()

    def _give_up(self, fault: ValueError | None, can_grow: bool) -> NoReturn:
        if can_grow:
            too_large(self._findings, self._place()[0], self._window[self._at : self._at + 200])
            raise StopReading
        if isinstance(fault, json.JSONDecodeError):
            self._at = min(fault.pos, len(self._window))
            self._stop(fault.msg)
        self._stop(f"a number can not be read: {fault}")

    def _is_cut(self, fault: ValueError) -> bool:
        """Whether an element may be whole further on: the fault is at the window's end or an open string."""
        if not isinstance(fault, json.JSONDecodeError):
            return False
        return fault.msg.startswith("Unterminated string") or fault.pos >= len(self._window) - 8

    def _next(self) -> str:
        """Skip blanks; the character at the cursor, or "" at the end of the file."""
        while True:
            match = _BLANK.match(self._window, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._window):
                return self._window[self._at]
            if self._at_end:
                return ""
            self._fill()

    def _fill(self) -> None:
        """Drop what is read and add one chunk. Raises StopReading where the bytes are not UTF-8."""
        self._place()
        self._window = self._window[self._at :]
        self._line_start -= self._at
        self._at = self._counted = 0
        chunk = self._stream.read(MIB)
        self._at_end = not chunk
        try:
            self._window += self._decode.decode(chunk, final=self._at_end)
        except UnicodeDecodeError as fault:
            before = fault.object[: fault.start]
            line = self._line + self._window.count("\n") + before.count(b"\n")
            start = before.rfind(b"\n") + 1
            raw = fault.object[start:].split(b"\n", 1)[0]
            raise not_utf8(self._findings, line, raw, fault.start - start) from fault

    def _place(self) -> tuple[int, int]:
        """Line and column of the cursor, from 1; counts on from the last call."""
        newlines = self._window.count("\n", self._counted, self._at)
        if newlines:
            self._line += newlines
            self._line_start = self._window.rfind("\n", self._counted, self._at) + 1
        self._counted = self._at
        return self._line, self._at - self._line_start + 1

    def _stop(self, what: str, *, code: str = "malformed_json", reason: str = "malformed_json") -> NoReturn:
        line, column = self._place()
        shown = self._window[max(0, self._at - 20) : self._at + 60]
        message = f"malformed JSON: {what}." if code == "malformed_json" else f"{what}."
        self._findings.error(line, message, code=code, column=column, reason=reason, sample=shown)
        raise StopReading
