"""Is what is used the sum of what is held (I2)? Drift is told, and repaired only by hand."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import Count, Sum

from clavier.quotas.models import Gpu, GpuBooking, Reservation, Usage


def audit_usage() -> list[str]:
    """Every use that is not the sum of its open rows, in words: of caps, and of GPUs."""
    caps = [f"I2: {row} but open reservations sum to {held}" for row, held in compared_caps() if row.used != held]
    gpus = [
        f"I2: {gpu.uuid} has {gpu.cores_used} % and {gpu.memory_used_mib} MiB in use "
        f"but open bookings sum to {cores} % and {memory} MiB"
        for gpu, cores, memory in compared_gpus()
        if (gpu.cores_used, gpu.memory_used_mib) != (cores, memory)
    ]
    return caps + gpus


def audit_holders() -> list[str]:
    """Every GPU or MIG device that is held whole and not alone (I3), in words."""
    open_bookings = GpuBooking.objects.filter(released_at=None)
    held = open_bookings.filter(gpu__in=open_bookings.filter(is_whole=True).values("gpu")).order_by("gpu_id")
    return [
        f"{row['gpu_id']} is held whole and has {row['holders']} holders"
        for row in held.values("gpu_id").annotate(holders=Count("pk"))
        if row["holders"] > 1
    ]


def repair_usage() -> int:
    """Set every use to the sum of its open rows; how many were wrong. Only by hand: find the cause first."""
    repaired = 0
    with transaction.atomic():
        list(Usage.objects.select_for_update().order_by("pk"))
        list(Gpu.objects.select_for_update().order_by("uuid"))
        for row, held in compared_caps():
            repaired += Usage.objects.filter(pk=row.pk).exclude(used=held).update(used=held)
        for gpu, cores, memory in compared_gpus():
            if (gpu.cores_used, gpu.memory_used_mib) != (cores, memory):
                repaired += Gpu.objects.filter(pk=gpu.pk).update(cores_used=cores, memory_used_mib=memory)
    return repaired


def compared_caps() -> list[tuple[Usage, int]]:
    """Each Usage row with the sum of its open reservations."""
    sums: dict[int, Any] = dict(
        Reservation.objects.filter(released_at=None)
        .values("usage_id")
        .annotate(total=Sum("amount"))
        .values_list("usage_id", "total")
    )
    return [(row, sums.get(row.pk, 0)) for row in Usage.objects.all()]


def compared_gpus() -> list[tuple[Gpu, int, int]]:
    """Each GPU with the percent and the MiB that its open bookings sum to."""
    found = GpuBooking.objects.filter(released_at=None).order_by("gpu_id").values("gpu_id")
    sums = {
        row["gpu_id"]: (row["cores"], row["memory"])
        for row in found.annotate(cores=Sum("cores_percent"), memory=Sum("memory_mib"))
    }
    return [(gpu, *sums.get(gpu.pk, (0, 0))) for gpu in Gpu.objects.all()]
