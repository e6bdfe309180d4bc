"""What the gate found: all of it counted, the first of it kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

LISTED = 20
SAMPLE_CHARACTERS = 120


class StopReading(Exception):
    """The rest of the file can not be read; the reason is among the findings."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. ``line`` and ``column`` start at 1; 0: the file as a whole. ``code`` is the error word."""

    line: int
    column: int
    code: str
    reason: str
    message: str
    sample: str
    is_error: bool


class Findings:
    """Errors make a file unusable, warnings are kept beside it. The first 20 of each are listed."""

    def __init__(self) -> None:
        self.errors = 0
        self.warnings = 0
        self.counts: Counter[str] = Counter()
        self.items: list[Finding] = []

    def error(
        self, line: int, message: str, *, reason: str, code: str = "bad_row", column: int = 0, sample: object = ""
    ) -> None:
        """Count an error."""
        self.errors += 1
        if self.errors <= LISTED:
            self._list(Finding(line, column, code, reason, _placed(line, column, message), _cut(sample), True))
        self.counts[reason] += 1

    def warn(self, line: int, message: str, *, reason: str, sample: object = "") -> None:
        """Count a warning."""
        self.warnings += 1
        if self.counts[reason] < LISTED:
            self._list(Finding(line, 0, reason, reason, _placed(line, 0, message), _cut(sample), False))
        self.counts[reason] += 1

    def listed_errors(self) -> list[Finding]:
        """The first errors, in the order of the file."""
        return [item for item in self.items if item.is_error]

    def as_json(self) -> dict[str, Any]:
        """What a version keeps: ``{errors, warnings, counts, items}``."""
        return {
            "errors": self.errors,
            "warnings": self.warnings,
            "counts": dict(self.counts),
            "items": [asdict(item) for item in self.items],
        }

    def _list(self, finding: Finding) -> None:
        self.items.append(finding)


def _placed(line: int, column: int, message: str) -> str:
    if not line:
        return message
    return f"line {line}, column {column}: {message}" if column else f"line {line}: {message}"


def _cut(sample: object) -> str:
    """A sample short enough to show, in printable characters only."""
    if isinstance(sample, bytes):
        sample = sample[: SAMPLE_CHARACTERS * 4].decode("utf-8", "replace")
    text = str(sample)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:SAMPLE_CHARACTERS])
    return shown + ("…" if len(text) > SAMPLE_CHARACTERS else "")
