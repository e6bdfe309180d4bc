"""What a database that protects references says, in words."""

from __future__ import annotations

from django.db.models import Model, ProtectedError, RestrictedError

from clavier.core.errors import Conflict, quoted

_NAMED = 5


def in_use(error: ProtectedError | RestrictedError, what: str) -> Conflict:
    """The 409 for a refused delete, naming what refers: "used by fine-tune task 'x'"."""
    objects = error.protected_objects if isinstance(error, ProtectedError) else error.restricted_objects
    users = sorted({_described(found) for found in objects})
    listed = ", ".join(users[:_NAMED]) + (f" and {len(users) - _NAMED} more" if len(users) > _NAMED else "")
    return Conflict(f"{what} is used by {listed}. Delete what uses it first.", code="in_use")


def _described(found: Model) -> str:
    return f"{found._meta.verbose_name} {quoted(str(getattr(found, 'name', None) or found))}"
