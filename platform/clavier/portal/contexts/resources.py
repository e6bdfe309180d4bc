"""What the page of resources shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from clavier.core.actor import Actor
from clavier.portal import labels
from clavier.portal.contexts.dashboard import Gauge
from clavier.quotas.capacity import groups_with_capacity
from clavier.quotas.gpus import held_gpus
from clavier.quotas.models import Gpu, GpuBooking
from clavier.quotas.nvidia import Load, recent_load
from clavier.quotas.queries import quota_of
from clavier.runs.models import Run
from clavier.runs.queries import holding_attempts

MAX_HOLDERS = 100
GIB_IN_MIB = 1024


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: whose, and how much of it is in use."""

    gauge: Gauge
    is_own: bool
    is_size: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """A run that has started and what it holds."""

    run: Run
    kind: str | Promise
    node: str
    cpu_cores: float
    memory_gib: float
    devices: list[str]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or MIG device. ``load``: percent now, where this machine has it."""

    gpu: Gpu
    state: labels.Label
    load: int | None


@dataclass(frozen=True, slots=True)
class GroupCard:
    """A resource group with what is in use."""

    name: str
    description: str
    is_active: bool
    is_open: bool
    num_nodes: int
    gauges: list[Gauge]
    mig: list[dict[str, Any]]
    shares: dict[str, int]
    devices: list[Device]
    limits: list[tuple[str | Promise, float]]
    defaults: list[tuple[str | Promise, float]]


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits, what is free, and what holds the rest."""

    limits: list[Limit]
    valid_from: datetime | None
    valid_until: datetime | None
    is_open: bool
    groups: list[GroupCard]
    holders: list[Holder]


def resources(actor: Actor) -> Resources:
    """The whole page. Of other tenants it tells only that something is in use."""
    quota, load = quota_of(actor), recent_load()
    return Resources(
        limits=[*storage_limits(quota), *(limit_of(row) for row in quota["limits"])],
        valid_from=quota["window"]["valid_from"],
        valid_until=quota["window"]["valid_until"],
        is_open=quota["window"]["is_open"],
        groups=[group_card(group, load) for group in groups_with_capacity(actor)],
        holders=holders(actor),
    )


def limit_of(row: dict[str, Any]) -> Limit:
    """A cap in the unit in which it is shown."""
    unit = labels.RESOURCE_UNITS.get(row["resource"], 1)
    gauge = Gauge(labels.RESOURCES.get(row["resource"], row["resource"]), row["used"] / unit, row["cap"] / unit)
    return Limit(gauge, row["scope"] == "user")


def storage_limits(quota: dict[str, Any]) -> list[Limit]:
    """Of the user, and of the tenant where it has limits."""
    found = []
    for name, is_own in (("storage", True), ("tenant_storage", False)):
        facts = quota[name]
        if facts["bytes_limit"] is not None:
            found.append(Limit(Gauge(_("Storage"), facts["bytes_used"], facts["bytes_limit"]), is_own, is_size=True))
        if facts["inodes_limit"] is not None:
            found.append(Limit(Gauge(_("Files and folders"), facts["inodes_used"], facts["inodes_limit"]), is_own))
    return found


def group_card(group: dict[str, Any], load: dict[str, Load]) -> GroupCard:
    """One group; what it does not have is left out."""
    gauges = []
    for name in ("cpu_milli", "memory_mib", "gpus"):
        total, free = group["capacity"].get(name, 0), group["free"].get(name, 0)
        if total:
            unit = labels.RESOURCE_UNITS.get(name, 1)
            gauges.append(Gauge(labels.RESOURCES[name], (total - free) / unit, total / unit))
    return GroupCard(
        name=group["name"],
        description=group["description"],
        is_active=group["is_active"],
        is_open=group["is_open"],
        num_nodes=group["num_nodes"],
        gauges=gauges,
        mig=group["mig"],
        shares=group["shares"],
        devices=[Device(gpu, device_state(gpu), percent(load.get(gpu.uuid))) for gpu in group["devices"]],
        limits=amounts(group["run_limits"]),
        defaults=amounts(group["default_resources"]),
    )


def amounts(given: dict[str, int]) -> list[tuple[str | Promise, float]]:
    """Names and amounts as people read them."""
    return [
        (labels.AMOUNTS.get(name, name), amount / labels.AMOUNT_UNITS.get(name, 1)) for name, amount in given.items()
    ]


def device_state(gpu: Gpu) -> labels.Label:
    """Free, partly held, or held."""
    if not gpu.cores_used and not gpu.memory_used_mib:
        return labels.Label(_("free"), "good")
    if gpu.allows_sharing and gpu.cores_used < 100 and gpu.memory_used_mib < gpu.memory_mib:
        return labels.Label(f"{gpu.cores_used} %", "warn")
    return labels.Label(_("in use"), "live")


def percent(load: Load | None) -> int | None:
    """How busy it is now."""
    return load.percent if load else None


def holders(actor: Actor) -> list[Holder]:
    """What the tenant's runs hold, oldest first."""
    attempts = list(holding_attempts(actor)[:MAX_HOLDERS])
    devices = held_gpus(attempt.pk for attempt in attempts)
    return [
        Holder(
            run=attempt.run,
            kind=labels.RUN_KINDS.get(attempt.run.kind, attempt.run.kind),
            node=attempt.node.name,
            cpu_cores=attempt.run.cpu_milli / 1000,
            memory_gib=attempt.run.memory_mib / GIB_IN_MIB,
            devices=[device_text(booking, attempt.node_id) for booking in devices.get(attempt.pk, [])],
        )
        for attempt in attempts
    ]


def device_text(booking: GpuBooking, node_id: UUID) -> str:
    """``GPU 0`` with the profile or the share, and the node where it is another than the first container's."""
    gpu = booking.gpu
    node = "" if gpu.node_id == node_id else f"{gpu.node.name} · "
    kind = f"MIG {gpu.mig_profile}" if gpu.mig_profile else "GPU"
    share = "" if booking.is_whole else f" ({booking.cores_percent} %, {booking.memory_mib / GIB_IN_MIB:.3g} GiB)"
    return f"{node}{kind} {gpu.index}{share}"
