"""What operators see of nodes, GPUs and quotas, and what they do with nodes. Raises Forbidden for everybody else."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from clavier.accounts.access import require_operator
from clavier.core.actor import Actor
from clavier.core.errors import NotFound, quoted
from clavier.quotas.inventory import declare_gpu
from clavier.quotas.models import OWNER_SCOPES, Gpu, Node, QuotaWindow, Usage
from clavier.quotas.nvidia import Device
from clavier.quotas.queries import owner_name, with_owner_names


def all_nodes(*, actor: Actor) -> QuerySet[Node]:
    """Every node."""
    require_operator(actor)
    return Node.objects.select_related("resource_group")


def change_node(*, actor: Actor, name: str, is_schedulable: bool) -> Node:
    """Let a node take runs, or no longer. Raises NotFound."""
    require_operator(actor, to_write=True)
    node = access_node(name)
    node.is_schedulable = is_schedulable
    node.save(update_fields=["is_schedulable"])
    return node


def all_gpus(*, actor: Actor, node: str | None = None) -> QuerySet[Gpu]:
    """Every device, or those of one node. Raises NotFound."""
    require_operator(actor)
    gpus = Gpu.objects.select_related("node")
    return gpus if node is None else gpus.filter(node=access_node(node))


def add_gpu(
    *,
    actor: Actor,
    node: str,
    uuid: str,
    memory_mib: int,
    index: int = 0,
    name: str = "",
    mig_profile: str = "",
    parent_uuid: str = "",
    allows_sharing: bool | None = None,
) -> Gpu:
    """Declare a device. Raises NotFound, Invalid, Conflict (``in_use``)."""
    require_operator(actor, to_write=True)
    device = Device(uuid, index, name, memory_mib, mig_profile, parent_uuid)
    return declare_gpu(node=access_node(node), device=device, allows_sharing=allows_sharing)


def all_quotas(*, actor: Actor, scope: str | None = None) -> list[dict[str, Any]]:
    """The quota of each tenant and user that has one, tenants first, by name."""
    require_operator(actor)
    scopes = [scope] if scope else OWNER_SCOPES
    caps = with_owner_names(Usage.objects.filter(scope__in=scopes)).order_by("resource")
    windows = with_owner_names(QuotaWindow.objects.filter(scope__in=scopes))
    found: dict[tuple[str, UUID], dict[str, Any]] = {}
    for row in [*caps, *windows]:
        key = (row.scope, row.scope_id)
        facts = found.setdefault(key, no_quota(row.scope, row.owner_name or str(row.scope_id)))
        add_row(facts, row)
    return sorted(found.values(), key=lambda facts: (OWNER_SCOPES.index(facts["scope"]), facts["name"]))


def quota_facts(scope: str, scope_id: UUID) -> dict[str, Any]:
    """The quota of one tenant or user."""
    facts = no_quota(scope, owner_name(scope, scope_id))
    for row in Usage.objects.filter(scope=scope, scope_id=scope_id).order_by("resource"):
        add_row(facts, row)
    for window in QuotaWindow.objects.filter(scope=scope, scope_id=scope_id):
        add_row(facts, window)
    return facts


def access_node(name: str) -> Node:
    """A node by name. Raises NotFound."""
    found = Node.objects.select_related("resource_group").filter(name=name).first()
    if found is None:
        raise NotFound(f"There is no node {quoted(name)}.", field="node")
    return found


def no_quota(scope: str, name: str) -> dict[str, Any]:
    """The quota of somebody who has none."""
    return {"scope": scope, "name": name, "caps": {}, "used": {}, "valid_from": None, "valid_until": None}


def add_row(facts: dict[str, Any], row: Usage | QuotaWindow) -> None:
    """A cap or a window into an owner's facts."""
    if isinstance(row, QuotaWindow):
        facts["valid_from"], facts["valid_until"] = row.valid_from, row.valid_until
    else:
        facts["caps"][row.resource], facts["used"][row.resource] = row.cap, row.used
