"""What groups and nodes have, and how much of it is free now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from clavier.core.actor import Actor
from clavier.quotas.gpus import usable
from clavier.quotas.models import Gpu, Node, ResourceGroup, Usage
from clavier.quotas.queries import usable_groups

COUNTED = ("cpu_milli", "memory_mib", "gpus")


def groups_with_capacity(actor: Actor) -> list[dict[str, Any]]:
    """The groups that the actor may use, by name, each with capacity and what is free of it on nodes that take runs.

    Queries: four, however many groups.
    """
    groups = list(usable_groups(actor).order_by("name"))
    nodes = list(Node.objects.filter(resource_group__in=groups, is_schedulable=True).order_by("name"))
    caps = node_caps(nodes)
    devices = devices_by_node(nodes)
    return [
        group_facts(group, [n for n in nodes if n.resource_group_id == group.pk], caps, devices) for group in groups
    ]


def group_facts(
    group: ResourceGroup, nodes: list[Node], caps: dict[UUID, list[Usage]], devices: dict[UUID, list[Gpu]]
) -> dict[str, Any]:
    """One group as plain data; ``devices`` are the rows of its GPUs that may be booked."""
    capacity, free = Counter(dict.fromkeys(COUNTED, 0)), Counter(dict.fromkeys(COUNTED, 0))
    for node in nodes:
        for row in caps.get(node.pk, []):
            if row.resource in COUNTED:
                capacity[row.resource] += row.cap
                free[row.resource] += max(0, row.cap - row.used)
    mine = [gpu for node in nodes for gpu in devices.get(node.pk, [])]
    clusters = any(node.assigns_gpus for node in nodes)
    if not clusters:
        free["gpus"] = sum(is_free(gpu) for gpu in mine if not gpu.mig_profile)
    return {
        "name": group.name,
        "description": group.description,
        "is_active": group.is_active,
        "is_open": group.is_open,
        "default_resources": group.default_resources,
        "run_limits": group.run_limits,
        "num_nodes": len(nodes),
        "node_names": [node.name for node in nodes],
        "capacity": dict(capacity),
        "free": dict(free),
        "mig": mig_kinds(mine),
        "shares": share_facts(mine),
        "devices": mine,
    }


def mig_kinds(gpus: Iterable[Gpu]) -> list[dict[str, Any]]:
    """Each MIG profile with how many devices there are and are free."""
    total: Counter[str] = Counter(gpu.mig_profile for gpu in gpus if gpu.mig_profile)
    free: Counter[str] = Counter(gpu.mig_profile for gpu in gpus if gpu.mig_profile and is_free(gpu))
    return [{"profile": profile, "total": total[profile], "free": free[profile]} for profile in sorted(total)]


def share_facts(gpus: Iterable[Gpu]) -> dict[str, int]:
    """How many GPUs may be shared, and the largest share that one of them has left."""
    shared = [gpu for gpu in gpus if gpu.allows_sharing and not gpu.mig_profile]
    best = max(shared, key=lambda gpu: (100 - gpu.cores_used, gpu.memory_mib - gpu.memory_used_mib), default=None)
    return {
        "gpus": len(shared),
        "largest_cores_percent": 100 - best.cores_used if best else 0,
        "largest_memory_mib": best.memory_mib - best.memory_used_mib if best else 0,
    }


def is_free(gpu: Gpu) -> bool:
    """Nobody holds any of it."""
    return not gpu.cores_used and not gpu.memory_used_mib


def node_caps(nodes: Iterable[Node]) -> dict[UUID, list[Usage]]:
    """Node -> its Usage rows."""
    found: dict[UUID, list[Usage]] = {}
    for row in Usage.objects.filter(scope="node", scope_id__in=[node.pk for node in nodes]).order_by("resource"):
        found.setdefault(row.scope_id, []).append(row)
    return found


def devices_by_node(nodes: Iterable[Node]) -> dict[UUID, list[Gpu]]:
    """Node -> devices that may be booked, by index."""
    found: dict[UUID, list[Gpu]] = {}
    for gpu in usable(Gpu.objects.select_related("node").filter(node__in=list(nodes))):
        found.setdefault(gpu.node_id, []).append(gpu)
    for devices in found.values():
        devices.sort(key=lambda gpu: (gpu.index, gpu.mig_profile, gpu.uuid))
    return found
