"""How much the rows of a file may take up: asked as they are written, not when the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from datasets_app.findings import Findings, StopReading
from datasets_app.formats import MIB

#: Rows of any file may have so many bytes, and those of a large file so many times its own.
LEAST_BYTES = 4 * 1024 * MIB
MOST_TIMES = 16
#: After so many bytes more it is asked again whether they fit.
STEP_BYTES = 64 * MIB


@dataclass(slots=True)
class Ceiling:
    """Bytes of rows that a file may unpack to. ``ask``: raises a DomainError when so many more do not fit."""

    most: int
    findings: Findings
    ask: Callable[[int], None] | None = None
    taken: int = 0
    next_at: int = 0

    @classmethod
    def of_file(cls, size_bytes: int, findings: Findings, ask: Callable[[int], None] | None) -> Ceiling:
        """The ceiling of a file of that size."""
        return cls(max(LEAST_BYTES, MOST_TIMES * size_bytes), findings, ask, next_at=STEP_BYTES)

    def take(self, line: int, size: int, *, is_written: bool) -> None:
        """A row of that size. Raises StopReading, with the reason found, and what ``ask`` raises."""
        self.taken += size
        if self.taken > self.most:
            message = (
                f"the rows of the file unpack to more than {self.most / MIB:,.0f} MiB, "
                "the most for a file of its size; split it."
            )
            self.findings.error(line, message, code="too_large", reason="too_large")
            raise StopReading
        if is_written and self.ask is not None and self.taken >= self.next_at:
            self.next_at = self.taken + STEP_BYTES
            self.ask(self.taken)
