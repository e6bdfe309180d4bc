"""The errors that users see. Everything else is a 500 with a request id."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One bad field: its path in the request, a stable machine word, and a sentence that says what to do."""

    field: str
    code: str
    message: str


class DomainError(Exception):
    """A refusal with a stable machine word (``code``), the sentence for the user, and the field at fault or None."""

    status = 400
    default_code = "invalid"

    def __init__(self, message: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.problems: tuple[FieldProblem, ...] = ()


class Invalid(DomainError):
    """A value is not allowed (400)."""

    default_code = "bad_value"


class InvalidFields(Invalid):
    """Several values are not allowed; all of them are reported at once (400)."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        if not problems:
            raise ValueError("InvalidFields needs at least one problem")
        first = problems[0]
        super().__init__(" ".join(problem.message for problem in problems), code=first.code, field=first.field)
        self.problems = tuple(problems)


class NotAuthenticated(DomainError):
    """No usable credentials (401)."""

    status = 401
    default_code = "not_authenticated"


class Forbidden(DomainError):
    """The actor may see the object but not do this (403)."""

    status = 403
    default_code = "forbidden"


class NotFound(DomainError):
    """No such object for this actor, whether it exists for somebody else or not (404)."""

    status = 404
    default_code = "not_found"


class Conflict(DomainError):
    """The object's state or other objects stand against it (409)."""

    status = 409
    default_code = "conflict"


class TooLarge(DomainError):
    """More bytes than allowed (413)."""

    status = 413
    default_code = "body_too_large"


class Unprocessable(DomainError):
    """Well-formed, but this installation can not do it (422)."""

    status = 422
    default_code = "unprocessable"


class QuotaExceeded(DomainError):
    """The tenant's or user's limit is reached (429)."""

    status = 429
    default_code = "quota_exceeded"


class StorageFull(DomainError):
    """The disk or the storage quota is full (507)."""

    status = 507
    default_code = "insufficient_storage"


def quoted(value: object, limit: int = 120) -> str:
    """A value as it may stand in a message: repr, at most ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
