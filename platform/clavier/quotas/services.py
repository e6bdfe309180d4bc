"""Reserve and release by conditional UPDATE: all of an attempt's resources or none, never more than a cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, Sum
from django.utils import timezone

from clavier.quotas.models import RESOURCES, Node, Reservation, ResourceGroup, Usage
from runner.contract.run_spec import Resources

DEFAULT_GROUP = "default"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a reservation failed: the first cap that stands in the way."""

    scope: str
    resource: str
    cap: int
    used: int
    wanted: int

    @property
    def can_ever_fit(self) -> bool:
        """False: even with nothing else running it would not fit."""
        return self.wanted <= self.cap

    def __str__(self) -> str:
        owner = {"tenant": "your tenant", "user": "you", "node": "this node"}[self.scope]
        left = max(0, self.cap - self.used)
        names = {"running_runs": "runs", "cpu_milli": "CPU cores", "memory_mib": "GiB of memory", "gpus": "GPUs"}
        unit = {"cpu_milli": 1000, "memory_mib": 1024}.get(self.resource, 1)
        return (
            f"{left / unit:.4g} of {self.cap / unit:.4g} {names[self.resource]} left for {owner}, "
            f"{self.wanted / unit:.4g} requested"
        )


def amounts_of(resources: Resources) -> dict[str, int]:
    """Resource name -> amount that a run with these resources holds."""
    return {
        "running_runs": 1,
        "cpu_milli": resources.cpu_milli,
        "memory_mib": resources.memory_mib,
        "gpus": resources.gpus,
    }


def reserve(*, attempt_id: UUID, tenant_id: UUID, user_id: UUID, node: Node, resources: Resources) -> Shortage | None:
    """Book everything for an attempt, or nothing; None on success. Call inside a transaction."""
    wanted = {name: amount for name, amount in amounts_of(resources).items() if amount > 0}
    scopes: list[tuple[str, UUID]] = [("tenant", tenant_id), ("user", user_id), ("node", node.pk)]
    booked: list[Reservation] = []
    with transaction.atomic():
        for scope, scope_id in scopes:
            rows = {row.resource: row for row in Usage.objects.filter(scope=scope, scope_id=scope_id)}
            for resource in RESOURCES:
                row, amount = rows.get(resource), wanted.get(resource, 0)
                if row is None or not amount:
                    continue
                taken = Usage.objects.filter(pk=row.pk, used__lte=F("cap") - amount).update(used=F("used") + amount)
                if not taken:
                    transaction.set_rollback(True)
                    return Shortage(scope, resource, row.cap, row.used, amount)
                booked.append(Reservation(attempt_id=attempt_id, usage=row, amount=amount))
        Reservation.objects.bulk_create(booked)
    return None


def release(*, attempt_id: UUID) -> int:
    """Give back exactly what the attempt still holds; how many reservations that were. Call inside a transaction."""
    released = 0
    for reservation in Reservation.objects.filter(attempt_id=attempt_id, released_at=None).order_by("usage_id"):
        marked = Reservation.objects.filter(pk=reservation.pk, released_at=None).update(released_at=timezone.now())
        if marked:
            Usage.objects.filter(pk=reservation.usage_id).update(used=F("used") - reservation.amount)
            released += 1
    return released


def move_reservations(*, from_attempt: UUID, to_attempt: UUID) -> None:
    """Hand an ended attempt's resources to the next attempt of the same run. Call inside a transaction."""
    open_rows = list(Reservation.objects.filter(attempt_id=from_attempt, released_at=None))
    Reservation.objects.filter(pk__in=[row.pk for row in open_rows]).update(released_at=timezone.now())
    Reservation.objects.bulk_create(
        Reservation(attempt_id=to_attempt, usage_id=row.usage_id, amount=row.amount) for row in open_rows
    )


def set_cap(*, scope: str, scope_id: UUID, resource: str, cap: int) -> Usage:
    """Set a cap; lowering it below the present use stops new runs, never running ones."""
    row, _ = Usage.objects.update_or_create(
        scope=scope, scope_id=scope_id, resource=resource, defaults={"cap": cap}, create_defaults={"cap": cap}
    )
    return row


def ensure_local_node() -> Node:
    """This machine as the only node of the group ``default``, with the caps of the settings."""
    with transaction.atomic():
        group, _ = ResourceGroup.objects.get_or_create(
            name=DEFAULT_GROUP, defaults={"description": "The machine on which the platform runs"}
        )
        node, created = Node.objects.get_or_create(
            name="local", defaults={"resource_group": group, "executor": settings.CLAVIER_EXECUTOR}
        )
        if not created and node.executor != settings.CLAVIER_EXECUTOR:
            node.executor = settings.CLAVIER_EXECUTOR
            node.save(update_fields=["executor"])
        caps = {"cpu_milli": settings.LOCAL_NODE_CPU_MILLI, "memory_mib": settings.LOCAL_NODE_MEMORY_MIB, "gpus": 0}
        for resource, cap in caps.items():
            set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
    return node


def audit_usage() -> list[str]:
    """Every Usage row whose ``used`` is not the sum of its open reservations (I2), in words."""
    sums: dict[int, Any] = dict(
        Reservation.objects.filter(released_at=None)
        .values("usage_id")
        .annotate(total=Sum("amount"))
        .values_list("usage_id", "total")
    )
    return [
        f"I2: {row} but open reservations sum to {sums.get(row.pk, 0)}"
        for row in Usage.objects.all()
        if row.used != sums.get(row.pk, 0)
    ]
