"""How far a long command is, on standard error."""

from __future__ import annotations

import time
from typing import Any


class Counter:
    """Files and bytes so far: one line that changes on a terminal, a line every few seconds elsewhere."""

    def __init__(self, stream: Any, what: str) -> None:
        self._stream, self._what = stream, what
        self._is_terminal = bool(getattr(stream, "isatty", lambda: False)())
        self._next = 0.0

    def __call__(self, files: int, size_bytes: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self._is_terminal else 5.0)
        end = "\r" if self._is_terminal else "\n"
        self._stream.write(f"{self._what}: {files:,} files, {size_bytes / 2**20:,.1f} MiB{end}", ending="")
        self._stream.flush()
