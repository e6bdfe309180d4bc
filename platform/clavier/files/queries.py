"""What lists of files are made from."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import QuerySet, Value
from django.db.models.functions import Substr

from clavier.core.actor import Actor
from clavier.core.errors import NotFound, quoted
from clavier.files.access import parse_area, visible_files
from clavier.files.models import StorageUsage, StoredFile, TenantStorage, default_bytes_limit, default_inodes_limit
from clavier.files.names import parse_user_path


def list_folder(*, actor: Actor, area: str, folder: str = "", owner_id: UUID | None = None) -> QuerySet[StoredFile]:
    """What lies directly in a folder of the actor or, public only, of another member; newest first.

    Raises Invalid, NotFound (folder).
    """
    parts = parse_user_path(folder, field="folder")
    files = visible_files(actor).filter(area=parse_area(area), created_by_id=owner_id or actor.user_id)
    path = "/".join(parts)
    if parts and not files.filter(path=path, is_folder=True).exists():
        raise NotFound(f"There is no folder {quoted(path)}.", field="folder")
    return files.filter(parent=path).select_related("created_by").order_by("-created_at", "id")


def storage_usage(actor: Actor) -> dict[str, Any]:
    """What the actor's files and data sets take up in its tenant, and what is left."""
    return _own_facts(actor.tenant_id, actor.user_id)


def tenant_storage_usage(actor: Actor) -> dict[str, Any]:
    """What everybody of the actor's tenant stores together; a limit of None is none."""
    return _facts_of_tenant(actor.tenant_id)


def storage_left(actor: Actor) -> dict[str, Any]:
    """``bytes`` and ``inodes`` that the actor may still store, by its own and its tenant's limits; None: no limit."""
    return storage_left_of(actor.tenant_id, actor.user_id)


def storage_left_of(tenant_id: UUID, user_id: UUID) -> dict[str, Any]:
    """The same of a user in a tenant."""
    both = (_own_facts(tenant_id, user_id), _facts_of_tenant(tenant_id))
    known = {
        what: [facts[f"{what}_remaining"] for facts in both if facts[f"{what}_remaining"] is not None]
        for what in ("bytes", "inodes")
    }
    return {what: min(amounts, default=None) for what, amounts in known.items()}


def has_default_limits(actor: Actor) -> bool:
    """Whether nobody ever set a limit of the actor's or its tenant's storage."""
    own, everyone = storage_usage(actor), tenant_storage_usage(actor)
    mine = (own["bytes_limit"], own["inodes_limit"])
    theirs = (everyone["bytes_limit"], everyone["inodes_limit"])
    return mine == (default_bytes_limit(), default_inodes_limit()) and theirs == (None, None)


def row_at(
    tenant_id: UUID, user_id: UUID, area: str, parts: tuple[str, ...], *, lock: bool = False
) -> StoredFile | None:
    """The file or folder at a path of a user's area; locked until the transaction ends when asked."""
    rows = StoredFile.objects.select_for_update() if lock else StoredFile.objects.all()
    return rows.filter(tenant_id=tenant_id, created_by_id=user_id, area=area, path="/".join(parts)).first()


def beneath(row: StoredFile) -> QuerySet[StoredFile]:
    """Everything inside a folder, at any depth."""
    prefix = f"{row.path}/"
    # No LIKE: SQLite's ignores case, so "Data/" would match "data/".
    return (
        StoredFile.objects.filter(tenant_id=row.tenant_id, created_by_id=row.created_by_id, area=row.area)
        .alias(head=Substr("path", 1, len(prefix)))
        .filter(head=Value(prefix))
    )


def _own_facts(tenant_id: UUID, user_id: UUID) -> dict[str, Any]:
    row = StorageUsage.objects.filter(tenant_id=tenant_id, user_id=user_id).first() or StorageUsage(
        bytes_limit=default_bytes_limit(), inodes_limit=default_inodes_limit()
    )
    return _facts(row)


def _facts_of_tenant(tenant_id: UUID) -> dict[str, Any]:
    return _facts(TenantStorage.objects.filter(tenant_id=tenant_id).first() or TenantStorage())


def _facts(row: StorageUsage | TenantStorage) -> dict[str, Any]:
    return {
        "bytes_used": row.bytes_used,
        "bytes_limit": row.bytes_limit,
        "bytes_remaining": _left(row.bytes_used, row.bytes_limit),
        "inodes_used": row.inodes_used,
        "inodes_limit": row.inodes_limit,
        "inodes_remaining": _left(row.inodes_used, row.inodes_limit),
    }


def _left(used: int, limit: int | None) -> int | None:
    return None if limit is None else max(0, limit - used)
