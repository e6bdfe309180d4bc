"""What the settings page shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clavier.accounts.models import ApiKey, Membership
from clavier.accounts.queries import members, own_api_keys
from clavier.core.actor import ROLES, Actor
from clavier.files.queries import storage_usage
from clavier.portal import labels
from clavier.portal.forms.settings import ApiKeyForm, MemberForm, ObjectStoreForm
from clavier.quotas.queries import remaining
from models_app.models import ObjectStore
from models_app.object_stores import visible_stores


@dataclass(frozen=True, slots=True)
class Cap:
    """One limit in the unit in which it is shown."""

    scope: str
    name: object
    used: float
    cap: float


@dataclass(frozen=True, slots=True)
class Settings:
    """Keys, members and limits. ``secret``: of the key just made, shown once."""

    actor: Actor
    keys: list[ApiKey]
    key_form: ApiKeyForm
    secret: str
    stores: list[ObjectStore]
    store_form: ObjectStoreForm
    members: list[Membership]
    member_form: MemberForm
    roles: tuple[str, ...]
    may_manage: bool
    caps: list[Cap]
    storage: dict[str, Any]


def settings(
    actor: Actor,
    *,
    key_form: ApiKeyForm | None = None,
    store_form: ObjectStoreForm | None = None,
    member_form: MemberForm | None = None,
    secret: str = "",
) -> Settings:
    """The whole page."""
    return Settings(
        actor=actor,
        keys=list(own_api_keys(actor)),
        key_form=key_form or ApiKeyForm(),
        secret=secret,
        stores=list(visible_stores(actor).order_by("name")),
        store_form=store_form or ObjectStoreForm(),
        members=list(members(actor)),
        member_form=member_form or MemberForm(),
        roles=ROLES,
        may_manage=actor.may_write and actor.manages_tenant,
        caps=[cap_of(row) for row in remaining(actor)],
        storage=storage_usage(actor),
    )


def cap_of(row: dict[str, Any]) -> Cap:
    """A row of the ledger."""
    unit = labels.RESOURCE_UNITS.get(row["resource"], 1)
    name = labels.RESOURCES.get(row["resource"], row["resource"])
    return Cap(row["scope"], name, row["used"] / unit, row["cap"] / unit)
