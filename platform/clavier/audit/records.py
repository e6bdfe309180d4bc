"""What the log's own signals do not see: who acts behind an API key, for whom, and verbs that change no row by save."""

from __future__ import annotations

from typing import Any

from auditlog.context import auditlog_value
from auditlog.models import LogEntry
from django.contrib.auth.base_user import AbstractBaseUser
from django.db.models import Model
from django.http import HttpRequest

MASK = "***"
#: The action of an entry that tells of a changed row.
CHANGE: int = LogEntry.Action.UPDATE
_EXTRA = "additional_data"


def act_as(user: AbstractBaseUser) -> None:
    """Name the user of a credential in all further entries of the request."""
    context = current()
    if context is not None:
        context["actor"] = user


def act_for(user_name: str) -> None:
    """Say in all further entries of the request that an operator acts for a user."""
    context = current()
    if context is not None:
        context[_EXTRA] = {"acting_for": user_name}


def record(
    instance: Model,
    event: str,
    *,
    changes: dict[str, list[str]] | None = None,
    action: int = LogEntry.Action.ACCESS,
    actor: AbstractBaseUser | None = None,
    **facts: Any,
) -> None:
    """One entry: something happened to an object that no ``save()`` tells of, such as ``stop`` or ``login``.

    ``changes``: field -> [before, after]. ``facts``: what else is worth knowing; never secrets.
    """
    context = current()
    # The request's own facts would replace those of the entry.
    about = context.pop(_EXTRA, None) if context is not None else None
    try:
        LogEntry.objects.log_create(
            instance,
            force_log=True,
            action=action,
            changes=changes or {},
            actor=actor,
            additional_data={"event": event, **(about or {}), **facts},
        )
    finally:
        if context is not None and about is not None:
            context[_EXTRA] = about


def signed_in(sender: Any, request: HttpRequest, user: AbstractBaseUser, **rest: Any) -> None:
    """A user has signed in with a password."""
    act_as(user)
    record(user, "login", actor=user)


def current() -> dict[str, Any] | None:
    """What the middleware knows of the request; None outside of one."""
    found: dict[str, Any] | None = auditlog_value.get(None)
    return found


def mask(value: str) -> str:
    """Nothing of a secret is shown."""
    return MASK
