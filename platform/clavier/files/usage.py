"""Charging storage to users and tenants: conditional UPDATEs, so that no race ever goes over a limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Count, F, Q, QuerySet, Sum
from django.utils.module_loading import import_string

from clavier.audit.records import CHANGE, record
from clavier.core.errors import StorageFull
from clavier.files.models import MIB, StorageUsage, StoredFile, TenantStorage


def charge(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int, field: str | None = None) -> None:
    """Add to the storage in use of a user and its tenant; a negative amount gives back.

    Call in the transaction that makes the row. Raises StorageFull (``quota_exceeded``), which must roll it back.
    """
    own, _ = StorageUsage.objects.get_or_create(tenant_id=tenant_id, user_id=user_id)
    everyone, _ = TenantStorage.objects.get_or_create(tenant_id=tenant_id)
    # Always the user first, so that two charges never wait for each other crosswise.
    for row in (own, everyone):
        if not _add(row, size_bytes, inodes):
            row.refresh_from_db()
            raise over_limit(row, size_bytes, inodes, field)


def charge_anyway(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int) -> None:
    """Charge for what lies there already, also over a limit: that keeps out new files only. Call in a transaction."""
    own, _ = StorageUsage.objects.get_or_create(tenant_id=tenant_id, user_id=user_id)
    everyone, _ = TenantStorage.objects.get_or_create(tenant_id=tenant_id)
    for row in (own, everyone):
        type(row)._default_manager.filter(pk=row.pk).update(
            bytes_used=F("bytes_used") + size_bytes, inodes_used=F("inodes_used") + inodes
        )


def release(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int) -> None:
    """Give back storage. Call in the transaction that deletes the row."""
    charge(tenant_id=tenant_id, user_id=user_id, size_bytes=-size_bytes, inodes=-inodes)


def refuse_over_limit(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int, field: str | None) -> None:
    """Raises StorageFull (``quota_exceeded``) early for what is charged later and would not fit now."""
    own, _ = StorageUsage.objects.get_or_create(tenant_id=tenant_id, user_id=user_id)
    everyone, _ = TenantStorage.objects.get_or_create(tenant_id=tenant_id)
    for row in (own, everyone):
        if is_over(row.bytes_used + size_bytes, row.bytes_limit) or is_over(row.inodes_used + inodes, row.inodes_limit):
            raise over_limit(row, size_bytes, inodes, field)


def set_storage_limits(
    *, tenant_id: UUID, user_id: UUID | None = None, bytes_limit: int | None = None, inodes_limit: int | None = None
) -> StorageUsage | TenantStorage:
    """Set the limits of a user in a tenant, or without a user of the tenant; None: as it was.

    A limit below what is stored stops new files and touches none.
    """
    row: StorageUsage | TenantStorage
    if user_id is None:
        row, _ = TenantStorage.objects.get_or_create(tenant_id=tenant_id)
    else:
        row, _ = StorageUsage.objects.get_or_create(tenant_id=tenant_id, user_id=user_id)
    limits = {"bytes_limit": bytes_limit, "inodes_limit": inodes_limit}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    changes = {
        name: [str(getattr(row, name)), str(limit)] for name, limit in limits.items() if getattr(row, name) != limit
    }
    if changes:
        type(row)._default_manager.filter(pk=row.pk).update(**limits)
        row.refresh_from_db()
        record(row, "set_quota", action=CHANGE, changes=changes)
    return row


def audit_storage() -> list[str]:
    """Every storage row whose use is not what the stored rows add up to (I2), in words."""
    return [
        f"I2: {row._meta.verbose_name} {row} but what is stored adds up to {size_bytes} bytes, {inodes} inodes"
        for row, size_bytes, inodes in _compared()
        if (row.bytes_used, row.inodes_used) != (size_bytes, inodes)
    ]


def repair_storage() -> int:
    """Set every use to what the stored rows add up to; how many were wrong. Only by hand: find the cause first."""
    wrong = [found for found in _compared() if (found[0].bytes_used, found[0].inodes_used) != found[1:]]
    for row, size_bytes, inodes in wrong:
        type(row)._default_manager.filter(pk=row.pk).update(bytes_used=size_bytes, inodes_used=inodes)
    return len(wrong)


def stored_files() -> QuerySet[Any, Any]:
    """Rows of (tenant, user, bytes, inodes): what files are charged with."""
    return (
        StoredFile.objects.order_by()
        .values("tenant_id", "created_by_id")
        .annotate(size=Sum("size_bytes"), inodes=Count("pk"))
        .values_list("tenant_id", "created_by_id", "size", "inodes")
    )


def is_over(used: int, limit: int | None) -> bool:
    """More than the limit, where there is one."""
    return limit is not None and used > limit


def over_limit(row: StorageUsage | TenantStorage, size_bytes: int, inodes: int, field: str | None) -> StorageFull:
    """The refusal, saying how much is used, left and asked for."""
    whose = "" if isinstance(row, StorageUsage) else " for your tenant"
    if is_over(row.bytes_used + size_bytes, row.bytes_limit):
        limit = row.bytes_limit or 0
        facts = (
            f"{max(0, limit - row.bytes_used) / MIB:,.1f} MiB of storage left{whose}, {size_bytes / MIB:,.1f} MiB "
            f"needed (used {row.bytes_used / MIB:,.1f} MiB, limit {limit / MIB:,.1f} MiB)"
        )
    else:
        limit = row.inodes_limit or 0
        facts = (
            f"{max(0, limit - row.inodes_used):,} files and folders left{whose}, {inodes:,} needed "
            f"(used {row.inodes_used:,}, limit {limit:,})"
        )
    return StorageFull(f"{facts}. Delete files or data sets, or ask the operator.", code="quota_exceeded", field=field)


def _add(row: StorageUsage | TenantStorage, size_bytes: int, inodes: int) -> bool:
    """The conditional UPDATE; False: it would go over a limit. Giving back always fits."""
    fitting = type(row)._default_manager.filter(pk=row.pk)
    if size_bytes > 0:
        fitting = fitting.filter(Q(bytes_limit=None) | Q(bytes_used__lte=F("bytes_limit") - size_bytes))
    if inodes > 0:
        fitting = fitting.filter(Q(inodes_limit=None) | Q(inodes_used__lte=F("inodes_limit") - inodes))
    return bool(fitting.update(bytes_used=F("bytes_used") + size_bytes, inodes_used=F("inodes_used") + inodes))


def _compared() -> Iterator[tuple[StorageUsage | TenantStorage, int, int]]:
    """Each row with the bytes and inodes that the ledgers of the settings add up to."""
    by_user: dict[tuple[UUID, UUID], tuple[int, int]] = {}
    by_tenant: dict[UUID, tuple[int, int]] = {}
    for ledger in settings.STORAGE_LEDGERS.values():
        for tenant_id, user_id, size_bytes, inodes in import_string(ledger)():
            own_sum, tenant_sum = by_user.get((tenant_id, user_id), (0, 0)), by_tenant.get(tenant_id, (0, 0))
            by_user[tenant_id, user_id] = (own_sum[0] + size_bytes, own_sum[1] + inodes)
            by_tenant[tenant_id] = (tenant_sum[0] + size_bytes, tenant_sum[1] + inodes)
    for own in StorageUsage.objects.all():
        yield (own, *by_user.get((own.tenant_id, own.user_id), (0, 0)))
    for everyone in TenantStorage.objects.all():
        yield (everyone, *by_tenant.get(everyone.tenant_id, (0, 0)))
