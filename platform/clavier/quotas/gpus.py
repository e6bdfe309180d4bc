"""Booking GPUs by UUID: whole ones and MIG devices for one holder, shares up to 100 percent and all memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db.models import F
from django.utils import timezone

from clavier.quotas.models import Gpu, GpuBooking, Node
from clavier.quotas.shortage import Shortage
from runner.contract.run_spec import Resources


@dataclass(frozen=True, slots=True)
class Placement:
    """One container of a run on a node."""

    rank: int
    node: Node
    resources: Resources


def book_gpus(*, attempt_id: UUID, placements: Sequence[Placement]) -> dict[int, tuple[str, ...]] | Shortage:
    """Rank -> UUIDs of what was booked. After a Shortage the caller rolls back. Call inside a transaction."""
    wanting = [place for place in placements if place.resources.has_gpu and not place.node.assigns_gpus]
    if not wanting:
        return {}
    devices = usable(Gpu.objects.select_for_update().filter(node_id__in={p.node.pk for p in wanting}))
    bookings: list[GpuBooking] = []
    # Whole devices first: shares then fill up what is shared already.
    for place in sorted(wanting, key=lambda place: (is_share(place.resources), place.rank)):
        found = choose([gpu for gpu in devices if gpu.node_id == place.node.pk], place.resources)
        if isinstance(found, Shortage):
            return Shortage("node", found.resource, found.cap, found.used, found.wanted, place.node.name, found.detail)
        for gpu in found:
            booking = booking_of(gpu, attempt_id, place)
            gpu.cores_used += booking.cores_percent
            gpu.memory_used_mib += booking.memory_mib
            bookings.append(booking)
    for booking in sorted(bookings, key=lambda booking: booking.gpu_id):
        if not take(booking):  # somebody was faster, which the lock should not let happen
            return Shortage("node", "gpus", len(devices), len(devices), 1, booking.gpu.node.name)
    GpuBooking.objects.bulk_create(bookings)
    return uuids_by_rank(bookings)


def gpus_of(attempt_id: UUID) -> dict[int, tuple[str, ...]]:
    """Rank -> UUIDs of the devices that an attempt holds now, in the order of their index."""
    return uuids_by_rank(GpuBooking.objects.filter(attempt_id=attempt_id, released_at=None).select_related("gpu"))


def held_gpus(attempt_ids: Iterable[UUID]) -> dict[UUID, list[GpuBooking]]:
    """Attempt -> its open bookings with their GPUs, by rank and index."""
    found: dict[UUID, list[GpuBooking]] = {}
    open_bookings = GpuBooking.objects.filter(attempt_id__in=list(attempt_ids), released_at=None)
    for booking in open_bookings.select_related("gpu__node").order_by("rank", "gpu__index", "gpu_id"):
        found.setdefault(booking.attempt_id, []).append(booking)
    return found


def release_gpus(*, attempt_id: UUID) -> int:
    """Give back exactly what the attempt still holds of GPUs; how many bookings that were."""
    released = 0
    for booking in GpuBooking.objects.filter(attempt_id=attempt_id, released_at=None).order_by("gpu_id", "rank"):
        if GpuBooking.objects.filter(pk=booking.pk, released_at=None).update(released_at=timezone.now()):
            Gpu.objects.filter(pk=booking.gpu_id).update(
                cores_used=F("cores_used") - booking.cores_percent,
                memory_used_mib=F("memory_used_mib") - booking.memory_mib,
            )
            released += 1
    return released


def move_bookings(*, from_attempt: UUID, to_attempt: UUID) -> None:
    """Hand an attempt's devices to the next attempt of the same run: what is used stays the same."""
    held = list(GpuBooking.objects.filter(attempt_id=from_attempt, released_at=None))
    GpuBooking.objects.filter(pk__in=[booking.pk for booking in held]).update(released_at=timezone.now())
    GpuBooking.objects.bulk_create(
        GpuBooking(
            gpu_id=booking.gpu_id,
            attempt_id=to_attempt,
            rank=booking.rank,
            is_whole=booking.is_whole,
            cores_percent=booking.cores_percent,
            memory_mib=booking.memory_mib,
        )
        for booking in held
    )


def usable(gpus: Iterable[Gpu]) -> list[Gpu]:
    """Devices that may be booked, without those that are cut into MIG devices; in a fixed order."""
    rows = sorted(gpus, key=lambda gpu: gpu.uuid)
    parents = {gpu.parent_uuid for gpu in rows if gpu.parent_uuid}
    return [gpu for gpu in rows if gpu.is_healthy and gpu.is_present and gpu.uuid not in parents]


def is_share(resources: Resources) -> bool:
    """A part of one GPU's time and memory."""
    return bool(resources.gpu_cores_percent or resources.gpu_memory_mib)


def num_devices(resources: Resources) -> int:
    """How many devices one container is booked on: a share lies on one."""
    return 1 if is_share(resources) else resources.gpus + resources.mig_devices


def choose(gpus: Sequence[Gpu], resources: Resources) -> list[Gpu] | Shortage:
    """Devices of one node for one container; of a Shortage only the numbers count."""
    if is_share(resources):
        return choose_share(gpus, resources)
    if resources.mig_devices:
        kind = [gpu for gpu in gpus if gpu.mig_profile == resources.mig_profile]
        return choose_whole(kind, resources.mig_devices, "mig_devices", f" {resources.mig_profile}")
    return choose_whole([gpu for gpu in gpus if not gpu.mig_profile], resources.gpus, "gpus", "")


def choose_whole(gpus: Sequence[Gpu], wanted: int, resource: str, detail: str) -> list[Gpu] | Shortage:
    """The first free ones; those that may be shared last, so that they stay for shares."""
    free = [gpu for gpu in gpus if not gpu.cores_used and not gpu.memory_used_mib]
    if len(free) < wanted:
        return Shortage("node", resource, len(gpus), len(gpus) - len(free), wanted, detail=detail)
    return sorted(free, key=lambda gpu: (gpu.allows_sharing, gpu.index, gpu.uuid))[:wanted]


def choose_share(gpus: Sequence[Gpu], resources: Resources) -> list[Gpu] | Shortage:
    """The fullest GPU on which the share still fits, so that whole ones stay free."""
    cores, memory = resources.gpu_cores_percent, resources.gpu_memory_mib
    large = [gpu for gpu in gpus if gpu.allows_sharing and not gpu.mig_profile and gpu.memory_mib >= memory]
    fitting = [g for g in large if g.cores_used + cores <= 100 and g.memory_used_mib + memory <= g.memory_mib]
    if not fitting:
        detail = f" with {cores} % and {memory} MiB"
        return Shortage("node", "vgpus", len(large), len(large), 1, detail=detail)
    return [min(fitting, key=lambda gpu: (-gpu.cores_used, -gpu.memory_used_mib, gpu.index, gpu.uuid))]


def booking_of(gpu: Gpu, attempt_id: UUID, place: Placement) -> GpuBooking:
    """The row for a device that was chosen."""
    share = is_share(place.resources)
    return GpuBooking(
        gpu=gpu,
        attempt_id=attempt_id,
        rank=place.rank,
        is_whole=not share,
        cores_percent=place.resources.gpu_cores_percent if share else 100,
        memory_mib=place.resources.gpu_memory_mib if share else gpu.memory_mib,
    )


def take(booking: GpuBooking) -> bool:
    """The conditional UPDATE: False when the device no longer has that much."""
    fitting = Gpu.objects.filter(
        pk=booking.gpu_id,
        is_healthy=True,
        is_present=True,
        cores_used__lte=100 - booking.cores_percent,
        memory_used_mib__lte=F("memory_mib") - booking.memory_mib,
    )
    return bool(
        fitting.update(
            cores_used=F("cores_used") + booking.cores_percent,
            memory_used_mib=F("memory_used_mib") + booking.memory_mib,
        )
    )


def uuids_by_rank(bookings: Iterable[GpuBooking]) -> dict[int, tuple[str, ...]]:
    """Rank -> UUIDs, in the order of their index."""
    found: dict[int, tuple[str, ...]] = {}
    for booking in sorted(bookings, key=lambda booking: (booking.rank, booking.gpu.index, booking.gpu_id)):
        found[booking.rank] = (*found.get(booking.rank, ()), booking.gpu_id)
    return found
