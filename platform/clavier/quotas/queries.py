"""What is left, and whose it is."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from clavier.accounts.models import Tenant, User
from clavier.core.actor import Actor
from clavier.core.errors import NotFound, quoted
from clavier.files.queries import storage_usage, tenant_storage_usage
from clavier.quotas.models import (
    OWNER_SCOPES,
    RESOURCES,
    Gpu,
    Node,
    QuotaWindow,
    ResourceGroup,
    ResourceGroupGrant,
    Usage,
)


def usable_groups(actor: Actor) -> QuerySet[ResourceGroup]:
    """The groups that the actor may send runs to, also those that take none now."""
    mine = ResourceGroupGrant.objects.filter(Q(tenant_id=actor.tenant_id) | Q(user_id=actor.user_id))
    return ResourceGroup.objects.filter(Q(is_open=True) | Q(pk__in=mine.values("resource_group_id")))


def access_group(actor: Actor, name: str) -> ResourceGroup:
    """A group that the actor may use. Raises NotFound, the same whether others may use one of that name or not."""
    found = usable_groups(actor).filter(name=name).first()
    if found is None:
        raise NotFound(f"There is no resource group {quoted(name)}.", field="resource_group")
    return found


def remaining(actor: Actor) -> list[dict[str, Any]]:
    """Each cap of the actor and its tenant: ``{scope, resource, cap, used, remaining}``."""
    rows = Usage.objects.filter(scope__in=OWNER_SCOPES, scope_id__in=(actor.tenant_id, actor.user_id))
    return [usage_facts(row) for row in rows.order_by("scope", "resource")]


def left_for(actor: Actor) -> dict[str, int | None]:
    """Resource -> what the actor can still take: the least of its caps, its tenant's and what its groups' nodes have.

    None: nothing bounds it.
    """
    bounds: dict[str, list[int]] = {}
    for facts in remaining(actor):
        bounds.setdefault(facts["resource"], []).append(facts["remaining"])
    for resource, amount in free_for(actor).items():
        bounds.setdefault(resource, []).append(amount)
    return {resource: min(bounds[resource]) if resource in bounds else None for resource in RESOURCES}


def free_for(actor: Actor) -> dict[str, int]:
    """Resource -> what is free on the nodes that take the actor's runs. No shares at all where no GPU is shared."""
    groups = usable_groups(actor).filter(is_active=True)
    nodes = Node.objects.filter(resource_group__in=groups, is_schedulable=True)
    free: dict[str, int] = {}
    for row in Usage.objects.filter(scope="node", scope_id__in=nodes.values("pk")):
        free[row.resource] = free.get(row.resource, 0) + max(0, row.cap - row.used)
    if not Gpu.objects.filter(node__in=nodes, allows_sharing=True, mig_profile="").exists():
        free["vgpus"] = 0
    return free


def window_of(actor: Actor) -> tuple[datetime | None, datetime | None]:
    """When the actor's quota is valid: the later start and the earlier end of its own window and its tenant's."""
    windows = QuotaWindow.objects.filter(scope_id__in=(actor.tenant_id, actor.user_id))
    starts = [window.valid_from for window in windows if window.valid_from]
    ends = [window.valid_until for window in windows if window.valid_until]
    return max(starts, default=None), min(ends, default=None)


def quota_of(actor: Actor) -> dict[str, Any]:
    """Everything that bounds the actor: caps, what is left of them and of the nodes, validity, storage."""
    now, (start, end), limits = timezone.now(), window_of(actor), remaining(actor)
    return {
        "limits": limits,
        "remaining": left_for(actor),
        "window": {
            "valid_from": start,
            "valid_until": end,
            "is_open": (start is None or start <= now) and (end is None or now < end),
        },
        "is_init": not limits and start is None and end is None,
        "storage": storage_usage(actor),
        "tenant_storage": tenant_storage_usage(actor),
    }


def node_usage() -> list[dict[str, Any]]:
    """Each node with its caps and use, for dashboards."""
    by_node: dict[Any, list[dict[str, Any]]] = {}
    for row in Usage.objects.filter(scope="node").order_by("resource"):
        by_node.setdefault(row.scope_id, []).append(usage_facts(row))
    nodes = Node.objects.select_related("resource_group")
    return [
        {"name": node.name, "resource_group": node.resource_group.name, "usage": by_node.get(node.pk, [])}
        for node in nodes
    ]


def usage_facts(row: Usage) -> dict[str, Any]:
    """One Usage row as plain data."""
    return {
        "scope": row.scope,
        "resource": row.resource,
        "cap": row.cap,
        "used": row.used,
        "remaining": max(0, row.cap - row.used),
    }


def owner_id(scope: str, name: str) -> UUID:
    """The id of the tenant, user or node of that name. Raises NotFound."""
    found: UUID | None = (
        {
            "tenant": Tenant.objects.filter(name=name),
            "user": User.objects.filter(username=name),
            "node": Node.objects.filter(name=name),
        }[scope]
        .values_list("pk", flat=True)
        .first()
    )
    if found is None:
        raise NotFound(f"There is no {scope} {quoted(name)}.", field=scope)
    return found


def owner_name(scope: str, scope_id: UUID) -> str:
    """The name of a tenant, user or node; empty when it is gone."""
    names: dict[str, QuerySet[Any, str]] = {
        "tenant": Tenant.objects.filter(pk=scope_id).values_list("name", flat=True),
        "user": User.objects.filter(pk=scope_id).values_list("username", flat=True),
        "node": Node.objects.filter(pk=scope_id).values_list("name", flat=True),
    }
    return names[scope].first() or ""


def with_owner_names(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Rows with a ``scope_id``, each with ``owner_name``."""
    owners = (Tenant.objects.all(), "name"), (User.objects.all(), "username"), (Node.objects.all(), "name")
    named = [Subquery(model.filter(pk=OuterRef("scope_id")).values(column)[:1]) for model, column in owners]
    found: QuerySet[Any] = rows.annotate(owner_name=Coalesce(*named))
    return found
