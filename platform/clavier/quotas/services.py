"""Reserve and release by conditional UPDATE: all of an attempt's resources or none, never more than a cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone
from django.utils.module_loading import import_string

from clavier.quotas.audit import audit_usage as audit_usage
from clavier.quotas.gpus import Placement as Placement
from clavier.quotas.gpus import book_gpus, is_share, move_bookings, release_gpus, usable
from clavier.quotas.gpus import gpus_of as gpus_of
from clavier.quotas.models import (
    RESOURCES,
    SCOPES,
    Gpu,
    Node,
    QuotaWindow,
    Reservation,
    ResourceGroup,
    Usage,
)
from clavier.quotas.shortage import Shortage as Shortage
from runner.contract.run_spec import Resources

DEFAULT_GROUP = "default"


@dataclass(frozen=True, slots=True)
class Booking:
    """Everything was reserved. ``gpus``: rank -> UUIDs of its devices."""

    gpus: dict[int, tuple[str, ...]] = field(default_factory=dict)


def amounts_of(resources: Resources) -> dict[str, int]:
    """Resource name -> amount that one container with these resources holds."""
    return {
        "cpu_milli": resources.cpu_milli,
        "memory_mib": resources.memory_mib,
        "gpus": resources.gpus,
        "vgpus": int(is_share(resources)),
        "mig_devices": resources.mig_devices,
    }


def reserve(*, attempt_id: UUID, tenant_id: UUID, user_id: UUID, placements: Sequence[Placement]) -> Booking | Shortage:
    """Book every container of an attempt, or nothing. Call inside a transaction.

    The order of the rows is fixed (tenant, user, nodes, then GPUs), so that two reservations never wait for each
    other crosswise. Counts one running run, however many containers.
    """
    closed = closed_window(tenant_id, user_id)
    if closed is not None:
        return closed
    with transaction.atomic():
        shortage = book_usage(attempt_id, tenant_id, user_id, placements)
        booked = shortage or book_gpus(attempt_id=attempt_id, placements=placements)
        if isinstance(booked, Shortage):
            transaction.set_rollback(True)
            return booked
    return Booking(booked)


def release(*, attempt_id: UUID) -> int:
    """Give back exactly what the attempt still holds; how many reservations that were. Call inside a transaction."""
    released = 0
    for reservation in in_order(Reservation.objects.filter(attempt_id=attempt_id, released_at=None)):
        marked = Reservation.objects.filter(pk=reservation.pk, released_at=None).update(released_at=timezone.now())
        if marked:
            Usage.objects.filter(pk=reservation.usage_id).update(used=F("used") - reservation.amount)
            released += 1
    return released + release_gpus(attempt_id=attempt_id)


def move_reservations(*, from_attempt: UUID, to_attempt: UUID) -> None:
    """Hand an ended attempt's resources to the next attempt of the same run. Call inside a transaction."""
    open_rows = list(Reservation.objects.filter(attempt_id=from_attempt, released_at=None))
    Reservation.objects.filter(pk__in=[row.pk for row in open_rows]).update(released_at=timezone.now())
    Reservation.objects.bulk_create(
        Reservation(attempt_id=to_attempt, usage_id=row.usage_id, amount=row.amount) for row in open_rows
    )
    move_bookings(from_attempt=from_attempt, to_attempt=to_attempt)


def set_cap(*, scope: str, scope_id: UUID, resource: str, cap: int) -> Usage:
    """Set a cap; lowering it below the present use stops new runs, never running ones.

    The first cap of anybody or of a node counts what live runs hold of it already.
    """
    with transaction.atomic():
        row, created = Usage.objects.get_or_create(
            scope=scope, scope_id=scope_id, resource=resource, defaults={"cap": cap}
        )
        if created:
            count_live(row)
        elif row.cap != cap:
            row.cap = cap
            row.save(update_fields=["cap"])
    return row


def lift_cap(*, scope: str, scope_id: UUID, resource: str) -> None:
    """No cap any more: the resource is no longer counted for its owner."""
    with transaction.atomic():
        row = Usage.objects.select_for_update().filter(scope=scope, scope_id=scope_id, resource=resource).first()
        if row is not None:
            row.reservations.all().delete()
            row.delete()


def ensure_local_node() -> Node:
    """This machine as the only node of the group ``default``, with the caps of the settings."""
    with transaction.atomic():
        group, _ = ResourceGroup.objects.get_or_create(
            name=DEFAULT_GROUP, defaults={"description": "The machine on which the platform runs"}
        )
        node, created = Node.objects.get_or_create(
            name="local", defaults={"resource_group": group, "executor": settings.CLAVIER_EXECUTOR}
        )
        if not created and node.executor != settings.CLAVIER_EXECUTOR and not is_in_use(node):
            node.executor = settings.CLAVIER_EXECUTOR
            node.save(update_fields=["executor"])
        caps = {"cpu_milli": settings.LOCAL_NODE_CPU_MILLI, "memory_mib": settings.LOCAL_NODE_MEMORY_MIB}
        for resource, cap in caps.items():
            set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
        count_devices(node)
    return node


def is_in_use(node: Node) -> bool:
    """A live attempt holds something of it: then its executor must stay, or what runs there would count as lost."""
    return Usage.objects.filter(scope="node", scope_id=node.pk, used__gt=0).exists()


def count_live(row: Usage) -> None:
    """Book what live attempts hold of a tenant's, user's or node's new row. Call inside a transaction."""
    held = []
    for attempt_id, containers in import_string(settings.LIVE_ATTEMPTS)(row.scope, row.scope_id):
        each = (amounts_of(resources)[row.resource] for resources in containers)
        amount = 1 if row.resource == "running_runs" else sum(each)
        if amount:
            held.append(Reservation(attempt_id=attempt_id, usage=row, amount=amount))
    Reservation.objects.bulk_create(held)
    row.used = sum(reservation.amount for reservation in held)
    row.save(update_fields=["used"])


def count_devices(node: Node) -> None:
    """Set the node's caps of GPUs and MIG devices from its rows. Clusters count their own."""
    if node.assigns_gpus:
        return
    devices = usable(Gpu.objects.filter(node=node))
    slices = sum(bool(gpu.mig_profile) for gpu in devices)
    set_cap(scope="node", scope_id=node.pk, resource="gpus", cap=len(devices) - slices)
    set_cap(scope="node", scope_id=node.pk, resource="mig_devices", cap=slices)


def closed_window(tenant_id: UUID, user_id: UUID) -> Shortage | None:
    """Why no run of the owner is admitted now, or None: the quota of the tenant or user is not valid now."""
    now = timezone.now()
    for window in QuotaWindow.objects.filter(scope_id__in=(tenant_id, user_id)).order_by("scope"):
        if window.valid_from is not None and now < window.valid_from:
            return Shortage(window.scope, "window", 0, 0, 1, opens_at=window.valid_from)
        if window.valid_until is not None and now >= window.valid_until:
            return Shortage(window.scope, "window", 0, 0, 1)
    return None


def book_usage(attempt_id: UUID, tenant_id: UUID, user_id: UUID, placements: Sequence[Placement]) -> Shortage | None:
    """The caps of tenant, user and nodes, by conditional UPDATE. After a Shortage the caller rolls back."""
    names = {place.node.pk: place.node.name for place in placements}
    per_node: dict[UUID, Counter[str]] = {pk: Counter(running_runs=1) for pk in sorted(names)}
    for place in placements:
        per_node[place.node.pk].update(amounts_of(place.resources))
    total = Counter(running_runs=1)
    for amounts in per_node.values():
        total.update({name: amount for name, amount in amounts.items() if name != "running_runs"})
    wanted = [("tenant", tenant_id, total), ("user", user_id, total)]
    wanted += [("node", pk, amounts) for pk, amounts in per_node.items()]
    booked: list[Reservation] = []
    for scope, scope_id, amounts in wanted:
        rows = {row.resource: row for row in Usage.objects.filter(scope=scope, scope_id=scope_id)}
        for resource in RESOURCES:
            row, amount = rows.get(resource), amounts[resource]
            if row is None or not amount:
                continue
            if Usage.objects.filter(pk=row.pk, used__lte=F("cap") - amount).update(used=F("used") + amount):
                booked.append(Reservation(attempt_id=attempt_id, usage=row, amount=amount))
            elif (now := Usage.objects.filter(pk=row.pk).first()) is not None:  # else the cap was just lifted
                return Shortage(scope, resource, now.cap, now.used, amount, names.get(scope_id, ""))
    Reservation.objects.bulk_create(booked)
    return None


def in_order(reservations: QuerySet[Reservation]) -> list[Reservation]:
    """In the order in which ``reserve`` takes the rows."""
    return sorted(
        reservations.select_related("usage"),
        key=lambda row: (SCOPES.index(row.usage.scope), row.usage.scope_id, RESOURCES.index(row.usage.resource)),
    )
