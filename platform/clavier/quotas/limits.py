"""What operators set: caps, windows and storage limits of tenants and users, by name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from django.db import transaction

from clavier.accounts.access import require_operator
from clavier.accounts.models import Membership
from clavier.core.actor import Actor
from clavier.core.errors import FieldProblem, Invalid, InvalidFields, quoted
from clavier.files.usage import set_storage_limits
from clavier.quotas.models import OWNER_SCOPES, RESOURCES, QuotaWindow, Usage
from clavier.quotas.queries import owner_id
from clavier.quotas.services import lift_cap, set_cap

MAX_CAP = 2**53


class Window(TypedDict, total=False):
    """When a quota is valid; None: open at that end. What is absent stays as it was."""

    valid_from: datetime | None
    valid_until: datetime | None


def change_quota(
    *,
    actor: Actor,
    scope: str,
    name: str,
    caps: Mapping[str, int | None] | None = None,
    window: Window | None = None,
    bytes_limit: int | None = None,
    inodes_limit: int | None = None,
) -> UUID:
    """The same as ``set_quota``, for operators. Raises Forbidden too."""
    require_operator(actor, to_write=True)
    return set_quota(
        scope=scope, name=name, caps=caps, window=window, bytes_limit=bytes_limit, inodes_limit=inodes_limit
    )


def set_quota(
    *,
    scope: str,
    name: str,
    caps: Mapping[str, int | None] | None = None,
    window: Window | None = None,
    bytes_limit: int | None = None,
    inodes_limit: int | None = None,
) -> UUID:
    """Set what is given of a tenant's or user's quota; the owner's id. A cap of None: no cap any more.

    A user's storage limits are set in every tenant of the user. Raises NotFound, InvalidFields.
    """
    if scope not in OWNER_SCOPES:
        raise Invalid(
            f"scope {quoted(scope)} is none of {', '.join(OWNER_SCOPES)}.", code="not_a_choice", field="scope"
        )
    found = owner_id(scope, name)
    check_caps(caps or {})
    with transaction.atomic():
        for resource, cap in (caps or {}).items():
            if cap is None:
                lift_cap(scope=scope, scope_id=found, resource=resource)
            else:
                set_cap(scope=scope, scope_id=found, resource=resource, cap=cap)
        if window:
            set_window(scope=scope, scope_id=found, **window)
        if bytes_limit is not None or inodes_limit is not None:
            for tenant_id, user_id in storage_owners(scope, found):
                set_storage_limits(
                    tenant_id=tenant_id, user_id=user_id, bytes_limit=bytes_limit, inodes_limit=inodes_limit
                )
    return found


def set_window(*, scope: str, scope_id: UUID, **times: Any) -> None:
    """Set when a quota is valid; open at both ends: always, and no row. Raises Invalid (``out_of_range``)."""
    row = QuotaWindow.objects.select_for_update().filter(scope=scope, scope_id=scope_id).first()
    row = row or QuotaWindow(scope=scope, scope_id=scope_id)
    for name, time in times.items():
        setattr(row, name, time)
    if row.valid_from and row.valid_until and row.valid_from >= row.valid_until:
        raise Invalid(
            f"valid_until {row.valid_until:%Y-%m-%d %H:%M} is not after valid_from {row.valid_from:%Y-%m-%d %H:%M}.",
            code="out_of_range",
            field="valid_until",
        )
    if row.valid_from is None and row.valid_until is None:
        if row.pk:
            row.delete()
        return
    row.save()


def check_caps(caps: Mapping[str, int | None]) -> None:
    """Raises InvalidFields with every bad cap."""
    problems = []
    for resource, cap in caps.items():
        if resource not in RESOURCES:
            message = f"caps.{resource} is none of {', '.join(RESOURCES)}."
            problems.append(FieldProblem(f"caps.{resource}", "unknown_field", message))
        elif cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or not 0 <= cap <= MAX_CAP):
            message = f"caps.{resource} {quoted(cap)} is no whole number from 0 to {MAX_CAP}; null takes the cap away."
            problems.append(FieldProblem(f"caps.{resource}", "out_of_range", message))
    if problems:
        raise InvalidFields(problems)


def storage_owners(scope: str, scope_id: UUID) -> list[tuple[UUID, UUID | None]]:
    """(tenant, user) of the storage rows: a tenant's own, or a user's in every tenant."""
    if scope == "tenant":
        return [(scope_id, None)]
    return [(row.tenant_id, row.user_id) for row in Membership.objects.filter(user_id=scope_id).order_by("tenant_id")]


def caps_of(scope: str, scope_id: UUID) -> dict[str, int]:
    """Resource -> cap."""
    return dict(Usage.objects.filter(scope=scope, scope_id=scope_id).values_list("resource", "cap"))
