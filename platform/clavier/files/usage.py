"""Charging storage: conditional UPDATEs, so that no race ever goes over a limit."""

from __future__ import annotations

from uuid import UUID

from django.db.models import F

from clavier.core.errors import StorageFull
from clavier.files.models import MIB, StorageUsage


def charge(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int, field: str | None = None) -> None:
    """Add to a user's storage in use; a negative amount gives back. Call in the transaction that makes the row.

    Raises StorageFull (``quota_exceeded``).
    """
    row, _ = StorageUsage.objects.get_or_create(tenant_id=tenant_id, user_id=user_id)
    fitting = StorageUsage.objects.filter(pk=row.pk)
    if size_bytes > 0:
        fitting = fitting.filter(bytes_used__lte=F("bytes_limit") - size_bytes)
    if inodes > 0:
        fitting = fitting.filter(inodes_used__lte=F("inodes_limit") - inodes)
    if fitting.update(bytes_used=F("bytes_used") + size_bytes, inodes_used=F("inodes_used") + inodes):
        return
    row.refresh_from_db()
    raise over_limit(row, size_bytes, inodes, field)


def release(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int) -> None:
    """Give back storage. Call in the transaction that deletes the row."""
    charge(tenant_id=tenant_id, user_id=user_id, size_bytes=-size_bytes, inodes=-inodes)


def refuse_over_limit(*, tenant_id: UUID, user_id: UUID, size_bytes: int, inodes: int, field: str | None) -> None:
    """Raises StorageFull (``quota_exceeded``) early for what is charged later and would not fit now."""
    row, _ = StorageUsage.objects.get_or_create(tenant_id=tenant_id, user_id=user_id)
    if row.bytes_used + size_bytes > row.bytes_limit or row.inodes_used + inodes > row.inodes_limit:
        raise over_limit(row, size_bytes, inodes, field)


def over_limit(row: StorageUsage, size_bytes: int, inodes: int, field: str | None) -> StorageFull:
    """The refusal, saying how much is used, left and asked for."""
    if row.bytes_used + size_bytes > row.bytes_limit:
        left = max(0, row.bytes_limit - row.bytes_used)
        facts = (
            f"{left / MIB:,.1f} MiB of storage left, {size_bytes / MIB:,.1f} MiB needed "
            f"(used {row.bytes_used / MIB:,.1f} MiB, limit {row.bytes_limit / MIB:,.1f} MiB)"
        )
    else:
        left = max(0, row.inodes_limit - row.inodes_used)
        facts = (
            f"{left:,} files and folders left, {inodes:,} needed (used {row.inodes_used:,}, limit {row.inodes_limit:,})"
        )
    return StorageFull(f"{facts}. Delete files or data sets, or ask the operator.", code="quota_exceeded", field=field)
