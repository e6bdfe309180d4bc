"""Reserving for many attempts at once, in a few statements. All of them or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from clavier.core.sql import insert, select, update_from
from clavier.quotas.gpus import booking_of, choose, is_share, usable
from clavier.quotas.models import RESOURCES, SCOPES, Gpu, GpuBooking, QuotaWindow, Reservation
from clavier.quotas.services import Placement, amounts_of
from clavier.quotas.shortage import Shortage

Owner = tuple[str, UUID]
LOCKED = """
    SELECT id, scope, scope_id, resource, used, cap FROM quotas_usage WHERE scope_id IN ({scope_ids})
    ORDER BY {scope}, scope_id, {resource} {lock}
"""


class Row(NamedTuple):
    """A row of Usage."""

    pk: int
    used: int
    cap: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one attempt wants."""

    attempt_id: UUID
    tenant_id: UUID
    user_id: UUID
    placements: Sequence[Placement]

    def amounts(self) -> dict[Owner, Counter[str]]:
        """Scope and its id -> resource -> amount; one running run, however many containers."""
        total = Counter(running_runs=1)
        found: dict[Owner, Counter[str]] = {}
        for place in self.placements:
            node = found.setdefault(("node", place.node.pk), Counter(running_runs=1))
            amounts = amounts_of(place.resources)
            node.update(amounts)
            total.update(amounts)
        return {("tenant", self.tenant_id): total, ("user", self.user_id): total, **found}


def reserve_all(wanted: Sequence[Wanted]) -> bool:
    """Book everything for all attempts; False: something was short, and the caller rolls back. Inside a transaction."""
    return not any_window_is_closed(wanted) and book_all_usage(wanted) and book_all_gpus(wanted)


def any_window_is_closed(wanted: Sequence[Wanted]) -> bool:
    """The quota of one of the owners is not valid now."""
    now = timezone.now()
    owners = {owner for one in wanted for owner in (one.tenant_id, one.user_id)}
    closed = QuotaWindow.objects.filter(Q(valid_from__gt=now) | Q(valid_until__lte=now))
    return not owners.isdisjoint(closed.values_list("scope_id", flat=True))


def book_all_usage(wanted: Sequence[Wanted]) -> bool:
    """The caps of tenants, users and nodes. The rows are locked in the order in which ``reserve`` takes them."""
    now = timezone.now()
    per_attempt = [(one.attempt_id, one.amounts()) for one in wanted]
    total: dict[Owner, Counter[str]] = {}
    for _, amounts in per_attempt:
        for owner, part in amounts.items():
            total.setdefault(owner, Counter()).update(part)
    rows = locked_rows([owner[1] for owner in total])
    taken: list[tuple[int, int]] = []
    for (scope, scope_id), part in total.items():
        for resource, amount in part.items():
            row = rows.get((scope, scope_id, resource))
            if row is None or not amount:
                continue
            if row.used + amount > row.cap:
                return False
            taken.append((row.pk, amount))
    if not add_to_used(taken):
        return False
    insert(
        Reservation,
        ("attempt_id", "usage", "amount", "created_at"),
        [
            (attempt_id, row.pk, amount, now)
            for attempt_id, amounts in per_attempt
            for (scope, scope_id), part in amounts.items()
            for resource, amount in part.items()
            if amount and (row := rows.get((scope, scope_id, resource))) is not None
        ],
    )
    return True


def locked_rows(scope_ids: Sequence[UUID]) -> dict[tuple[str, UUID, str], Row]:
    """The caps of some owners, locked in order: tenants, users, nodes, each by id and resource."""
    is_postgresql = connection.vendor == "postgresql"
    found: dict[tuple[str, UUID, str], Row] = {}
    for pk, scope, scope_id, resource, used, cap in select(
        LOCKED.format(
            scope_ids=", ".join(["%s"] * len(scope_ids)),
            scope=position_in(SCOPES, "scope"),
            resource=position_in(RESOURCES, "resource"),
            lock="FOR UPDATE" if is_postgresql else "",
        ),
        *scope_ids,
    ):
        found[scope, scope_id if is_postgresql else UUID(scope_id), resource] = Row(pk, used, cap)
    return found


def position_in(names: Sequence[str], column: str) -> str:
    """To sort a column by the order of the names."""
    cases = " ".join(f"WHEN '{name}' THEN {at}" for at, name in enumerate(names))
    return f"CASE {column} {cases} END"


def add_to_used(taken: Sequence[tuple[int, int]]) -> bool:
    """One conditional UPDATE for all rows; False when a cap was in the way of one."""
    changed = update_from(
        "UPDATE quotas_usage SET used = used + column2 FROM {given} WHERE id = column1 AND used + column2 <= cap",
        ("bigint", "bigint"),
        taken,
    )
    return changed == len(taken)


def book_all_gpus(wanted: Sequence[Wanted]) -> bool:
    """Devices by UUID, chosen as ``book_gpus`` does; whole ones first, so that shares fill up what is shared."""
    wanting = [
        (one.attempt_id, place)
        for one in wanted
        for place in one.placements
        if place.resources.has_gpu and not place.node.assigns_gpus
    ]
    if not wanting:
        return True
    nodes = {place.node.pk for _, place in wanting}
    by_node: dict[UUID, list[Gpu]] = {}
    for gpu in usable(Gpu.objects.select_for_update().filter(node_id__in=nodes).order_by("uuid")):
        by_node.setdefault(gpu.node_id, []).append(gpu)
    bookings: list[GpuBooking] = []
    for attempt_id, place in sorted(wanting, key=lambda pair: is_share(pair[1].resources)):
        found = choose(by_node.get(place.node.pk, []), place.resources)
        if isinstance(found, Shortage):
            return False
        for gpu in found:
            booking = booking_of(gpu, attempt_id, place)
            gpu.cores_used += booking.cores_percent
            gpu.memory_used_mib += booking.memory_mib
            bookings.append(booking)
    booked = {booking.gpu_id: booking.gpu for booking in bookings}.values()
    update_from(
        "UPDATE quotas_gpu SET cores_used = column2, memory_used_mib = column3 FROM {given} WHERE uuid = column1",
        ("varchar", "bigint", "bigint"),
        [(gpu.uuid, gpu.cores_used, gpu.memory_used_mib) for gpu in booked],
    )
    fields = ("gpu", "attempt_id", "rank", "is_whole", "cores_percent", "memory_mib", "created_at")
    now = timezone.now()
    insert(GpuBooking, fields, [
        (one.gpu_id, one.attempt_id, one.rank, one.is_whole, one.cores_percent, one.memory_mib, now) for one in bookings
    ])  # fmt: skip
    return True
