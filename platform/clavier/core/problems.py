"""Several checks of one request, and everything that they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from clavier.core.errors import DomainError, FieldProblem, Invalid, InvalidFields

Checked = TypeVar("Checked")


class Problems:
    """Collects what several checks refuse, so that the user hears of all of it at once."""

    def __init__(self) -> None:
        self._found: list[FieldProblem] = []
        self._other: DomainError | None = None

    def check(self, function: Callable[..., Checked], *arguments: Any, **named: Any) -> Checked | None:
        """The function's result, or None when it refused."""
        try:
            return function(*arguments, **named)
        except Invalid as refusal:
            own = FieldProblem(refusal.field or "", refusal.code, refusal.message)
            self._found += list(refusal.problems) or [own]
        except DomainError as refusal:
            self._other = self._other or refusal
        return None

    def add(self, field: str, code: str, message: str) -> None:
        """One more."""
        self._found.append(FieldProblem(field, code, message))

    def exclude(self, one: str, other: str) -> None:
        """Two fields that were both given, of which one must go."""
        message = f"{one} and {other} exclude each other: give what the program is to read."
        self.add(one, "conflicting_fields", message)

    def end(self) -> None:
        """Raises InvalidFields with every bad field, else the first other refusal (NotFound, Conflict)."""
        if self._found:
            raise InvalidFields(self._found)
        if self._other is not None:
            raise self._other
