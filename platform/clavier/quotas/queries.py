"""What is left."""

from __future__ import annotations

from typing import Any

from clavier.core.actor import Actor
from clavier.quotas.models import Node, Usage


def remaining(actor: Actor) -> list[dict[str, Any]]:
    """Each cap of the actor and its tenant: ``{scope, resource, cap, used, remaining}``."""
    rows = Usage.objects.filter(scope__in=("tenant", "user"), scope_id__in=(actor.tenant_id, actor.user_id))
    return [usage_facts(row) for row in rows.order_by("scope", "resource")]


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
