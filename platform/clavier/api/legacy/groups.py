"""Resource groups (zones) by the three names that the document has for one: id, name and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from clavier.api.legacy.errors import spoken
from clavier.api.legacy.words import say
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, NotFound, quoted
from clavier.quotas.models import ResourceGroup
from clavier.quotas.queries import usable_groups

#: The names of id, name and key in the requests for tasks, and in those for evaluations and services.
ZONE_FIELDS = ("zoneId", "zoneName", "resourceGroupKey")
GROUP_FIELDS = ("resourceGroupId", "resourceGroupName", "resourceGroupKey")


def key_of(group_id: UUID) -> str:
    """``resourceGroup`` and 16 characters: what the platform generates as a group's key."""
    return f"resourceGroup{group_id.hex[:16]}"


def names_of(name: str) -> dict[str, Any]:
    """A group's id, name and key, as evaluations and services show them."""
    group = ResourceGroup.objects.filter(name=name).first()
    return {
        "resourceGroupId": str(group.pk) if group else None,
        "resourceGroupName": name,
        "resourceGroupKey": key_of(group.pk) if group else None,
    }


def group_name(actor: Actor, values: Mapping[str, Any], fields: tuple[str, str, str] = ZONE_FIELDS) -> str:
    """The group that a request names; empty when it names none.

    Raises NotFound for one that the actor may not use, Invalid when its names mean several.
    """
    given = {field: str(values[field]) for field in fields if values.get(field)}
    if not given:
        return ""
    groups = list(usable_groups(actor))
    found = {field: group_of(groups, field, name) for field, name in given.items()}
    if len({group.pk for group in found.values()}) > 1:
        named = ", ".join(f"{field}={quoted(given[field], 60)}" for field in given)
        message = say(f"{named} 不是同一个资源组", f"{named} are not the same resource group.")
        raise spoken(Invalid(message, code="conflicting_fields", field=next(iter(given))))
    return next(iter(found.values())).name


def group_of(groups: list[ResourceGroup], field: str, name: str) -> ResourceGroup:
    """The group of an id, name or key. Raises NotFound."""
    for group in groups:
        if name in (str(group.pk), group.name, key_of(group.pk)):
            return group
    message = say(f"{field}: 没有资源组 {quoted(name, 60)}", f"{field}: there is no resource group {quoted(name, 60)}.")
    raise spoken(NotFound(message, field=field))
