"""What can be done with files. Rows are the truth; a row's unique path is the lock on that place of the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, BinaryIO, NamedTuple

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import Count, ProtectedError, RestrictedError, Sum, Value
from django.db.models.functions import Concat, Substr
from django.utils import timezone

from clavier.accounts.access import require_write
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, NotFound, quoted
from clavier.core.ownership import share_with_tenant
from clavier.core.references import in_use
from clavier.files.access import access_file, parse_area, require_file_change
from clavier.files.models import StoredFile
from clavier.files.names import MAX_PATH_BYTES, parse_file_name, parse_user_path
from clavier.files.queries import beneath, row_at
from clavier.files.storage import (
    DiskChanges,
    Staged,
    area_folder,
    disk_changes,
    open_regular,
    sha256_of,
    stage,
)
from clavier.files.usage import charge as charge
from clavier.files.usage import release as release

Parts = tuple[str, ...]
MAX_FILES_AT_ONCE = 10_000


class Incoming(NamedTuple):
    """A file on its way in. ``sha256``: empty when nobody has read it yet."""

    parts: Parts
    staged: Staged
    sha256: str


def upload_file(
    *, actor: Actor, area: str, folder: str, name: str, upload: UploadedFile[Any], overwrite: bool = False
) -> StoredFile:
    """Store one file in an existing folder of the actor's area. Takes the upload's spooled file over.

    The upload is used up either way.
    Raises Forbidden, Invalid, NotFound (folder), Conflict (``already_exists``), TooLarge, StorageFull.
    """
    with closing(upload):
        path = parse_file_name(name, field="name")
        return upload_files(actor=actor, area=area, folder=folder, uploads=[(path, upload)], overwrite=overwrite)[0]


def upload_files(
    *, actor: Actor, area: str, folder: str, uploads: Sequence[tuple[str, UploadedFile[Any]]], overwrite: bool = False
) -> list[StoredFile]:
    """Store (relative path, upload) pairs, all or none, and make the folders in their paths.

    Raises as ``upload_file``; Invalid (``too_many_parts``) for more than 10,000 at once.
    """
    with ExitStack() as cleanup:
        for _, upload in uploads:
            cleanup.callback(upload.close)
        require_write(actor)
        parse_area(area)
        if not 1 <= len(uploads) <= MAX_FILES_AT_ONCE:
            raise Invalid(
                f"file: {len(uploads):,} parts; 1 to {MAX_FILES_AT_ONCE:,} are allowed.",
                code="too_many_parts" if uploads else "required",
                field="file",
            )
        base = parse_user_path(folder, field="folder")
        targets = upload_folder_paths(base, [path for path, _ in uploads])
        refuse_taken(actor, area, targets, overwrite)
        number = own_tenant(actor).number
        incoming = []
        for parts, (_, upload) in zip(targets, uploads, strict=True):
            staged = stage(upload, settings.CLAVIER_FILES, field="file")
            cleanup.callback(staged.discard)
            share_with_tenant(staged.path, number)
            incoming.append(Incoming(parts, staged, sha256_of(staged.path)))
        with disk_changes(settings.CLAVIER_FILES) as disk, transaction.atomic(durable=True):
            require_folder(actor, area, base)
            return store(actor, area, incoming, overwrite, disk)


def upload_folder_paths(base: Parts, paths: Sequence[str]) -> list[Parts]:
    """Where the relative paths of a folder upload ("data/train/x.jsonl") go. Raises Invalid, Conflict for doubles."""
    targets = [base + _file_path(path) for path in paths]
    double, count = Counter(targets).most_common(1)[0]
    if count > 1:
        message = f"name {quoted('/'.join(double))} comes {count} times in one upload."
        raise Conflict(message, code="already_exists", field="name")
    return targets


def create_folder(*, actor: Actor, area: str, folder: str, name: str) -> StoredFile:
    """An empty folder in an existing one. Raises Forbidden, Invalid, NotFound, Conflict, StorageFull."""
    require_write(actor)
    parse_area(area)
    base = parse_user_path(folder, field="folder")
    parts = (*base, parse_file_name(name, field="name"))
    number = own_tenant(actor).number
    with disk_changes(settings.CLAVIER_FILES) as disk, transaction.atomic(durable=True):
        require_folder(actor, area, base)
        charge(tenant_id=actor.tenant_id, user_id=actor.user_id, size_bytes=0, inodes=1, field="name")
        row = _insert(actor, area, parts, is_folder=True)
        disk.make_folder(area_folder(actor.tenant_id, actor.user_id, area, number), parts, number)
    return row


def move_file(
    *, actor: Actor, file: StoredFile, folder: str, name: str | None = None, area: str | None = None
) -> StoredFile:
    """Move or rename a file or folder of one owner; only the owner moves it between areas.

    Raises NotFound, Forbidden, Invalid, Conflict (``already_exists``, ``into_itself``).
    """
    found = require_file_change(actor, file)
    area = parse_area(area or found.area)
    if area != found.area and found.created_by_id != actor.user_id:
        raise Forbidden("Only its owner moves a file between the private and the public area.")
    base = parse_user_path(folder, field="folder")
    parts = (*base, parse_file_name(found.name if name is None else name, field="name"))
    number = own_tenant(actor).number
    with disk_changes(settings.CLAVIER_FILES) as disk, transaction.atomic(durable=True):
        row = _locked(found)
        source, source_area = tuple(row.path.split("/")), row.area
        if (source_area, source) == (area, parts):
            return row
        if row.is_folder and source_area == area and parts[: len(source)] == source:
            raise Conflict(f"{quoted(row.path)} can not be moved into itself.", code="into_itself", field="folder")
        require_folder(row, area, base)
        _move_rows(row, area, parts)
        disk.move(
            area_folder(row.tenant_id, row.created_by_id, source_area, number),
            source,
            area_folder(row.tenant_id, row.created_by_id, area, number),
            parts,
        )
    return row


def delete_file(*, actor: Actor, file: StoredFile) -> None:
    """Delete a file, or a folder with everything in it. Raises NotFound, Forbidden, Conflict (``in_use``)."""
    found = require_file_change(actor, file)
    number = own_tenant(actor).number
    with disk_changes(settings.CLAVIER_FILES) as disk, transaction.atomic(durable=True):
        row = _locked(found)
        parts = tuple(row.path.split("/"))
        rows = beneath(row) | StoredFile.objects.filter(pk=row.pk)
        held = rows.aggregate(size=Sum("size_bytes"), count=Count("pk"))
        try:
            rows.delete()
        except (ProtectedError, RestrictedError) as error:
            raise in_use(error, f"{'folder' if row.is_folder else 'file'} {quoted(row.path)}") from error
        release(tenant_id=row.tenant_id, user_id=row.created_by_id, size_bytes=held["size"] or 0, inodes=held["count"])
        disk.set_aside(area_folder(row.tenant_id, row.created_by_id, row.area, number), parts)


def open_stored_file(*, actor: Actor, file: StoredFile) -> BinaryIO:
    """The bytes of a file that the actor may read, seekable. Raises NotFound, Conflict (``not_a_regular_file``)."""
    found = access_file(actor, file.pk)
    if found.is_folder:
        raise Conflict(f"{found.path} is a folder; only regular files are opened.", code="not_a_regular_file")
    number = own_tenant(actor).number
    folder = area_folder(found.tenant_id, found.created_by_id, found.area, number)
    return open_regular(folder, tuple(found.path.split("/")))


def _file_path(path: str) -> Parts:
    parts = parse_user_path(path, field="name")
    if not parts or path.endswith("/"):
        raise Invalid(f"name {quoted(path)} names no file.", code="required", field="name")
    return (*parts[:-1], parse_file_name(parts[-1], field="name"))


def refuse_taken(actor: Actor, area: str, targets: list[Parts], overwrite: bool) -> None:
    """Refuse early what the transaction would refuse anyway, before the bytes are read."""
    for parts in targets[:100]:
        existing = row_at(actor.tenant_id, actor.user_id, area, parts)
        if existing is not None and (existing.is_folder or not overwrite):
            raise _taken(parts)


def store(actor: Actor, area: str, incoming: list[Incoming], overwrite: bool, disk: DiskChanges) -> list[StoredFile]:
    """Put staged files and the folders in their paths into place: rows first (their unique path is the lock).

    Raises Conflict (``already_exists``), StorageFull.
    """
    number = own_tenant(actor).number
    root = area_folder(actor.tenant_id, actor.user_id, area, number)
    folders = _missing_folders(actor, area, incoming)
    existing = [row_at(actor.tenant_id, actor.user_id, area, item.parts, lock=True) for item in incoming]
    new_bytes = sum(item.staged.size_bytes for item in incoming) - sum(row.size_bytes for row in existing if row)
    charge(
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        size_bytes=new_bytes,
        inodes=len(folders) + existing.count(None),
        field="file",
    )
    for parts in folders:
        _insert(actor, area, parts, is_folder=True)
        disk.make_folder(root, parts, number)
    rows = []
    for item, row in zip(incoming, existing, strict=True):
        if row is not None and (row.is_folder or not overwrite):
            raise _taken(item.parts)
        rows.append(_replace(row, item) if row else _insert(actor, area, item.parts, item=item))
        disk.place(item.staged.path, root, item.parts)
    return rows


def require_folder(owner: Actor | StoredFile, area: str, parts: Parts) -> None:
    """The folder must stay until the transaction ends. Raises NotFound, Conflict."""
    if not parts:
        return
    user_id = owner.user_id if isinstance(owner, Actor) else owner.created_by_id
    row = row_at(owner.tenant_id, user_id, area, parts, lock=True)
    if row is None:
        raise NotFound(f"There is no folder {quoted('/'.join(parts))}. Create it first.", field="folder")
    if not row.is_folder:
        raise Conflict(f"{quoted('/'.join(parts))} is a file, not a folder.", code="not_a_folder", field="folder")


def _missing_folders(actor: Actor, area: str, incoming: list[Incoming]) -> list[Parts]:
    wanted = {item.parts[:depth] for item in incoming for depth in range(1, len(item.parts))}
    missing = []
    for parts in sorted(wanted, key=lambda parts: (len(parts), parts)):
        row = row_at(actor.tenant_id, actor.user_id, area, parts, lock=True)
        if row is None:
            missing.append(parts)
        elif not row.is_folder:
            raise Conflict(f"{quoted('/'.join(parts))} is a file, not a folder.", code="already_exists", field="name")
    return missing


def _insert(
    actor: Actor, area: str, parts: Parts, *, is_folder: bool = False, item: Incoming | None = None
) -> StoredFile:
    try:
        with transaction.atomic():
            return StoredFile.objects.create(
                tenant_id=actor.tenant_id,
                created_by_id=actor.user_id,
                area=area,
                path="/".join(parts),
                parent="/".join(parts[:-1]),
                name=parts[-1],
                is_folder=is_folder,
                size_bytes=item.staged.size_bytes if item else 0,
                sha256=item.sha256 if item else "",
            )
    except IntegrityError as error:
        raise _taken(parts) from error


def _replace(row: StoredFile, item: Incoming) -> StoredFile:
    row.size_bytes, row.sha256, row.modified_at = item.staged.size_bytes, item.sha256, timezone.now()
    row.save(update_fields=["size_bytes", "sha256", "modified_at", "updated_at"])
    return row


def _move_rows(row: StoredFile, area: str, parts: Parts) -> None:
    if row_at(row.tenant_id, row.created_by_id, area, parts) is not None:
        raise _taken(parts)
    old, new = row.path, "/".join(parts)
    inner = beneath(row)
    longest = max((len(path.encode()) for path in inner.values_list("path", flat=True).iterator()), default=0)
    if longest - len(old.encode()) + len(new.encode()) > MAX_PATH_BYTES:
        raise Invalid(
            f"folder: a path in {quoted(old)} would be longer than {MAX_PATH_BYTES} bytes.",
            code="too_long",
            field="folder",
        )
    inner.update(
        area=area,
        path=Concat(Value(new), Substr("path", len(old) + 1)),
        parent=Concat(Value(new), Substr("parent", len(old) + 1)),
    )
    row.area, row.path, row.parent, row.name = area, new, "/".join(parts[:-1]), parts[-1]
    try:
        with transaction.atomic():
            row.save(update_fields=["area", "path", "parent", "name", "updated_at"])
    except IntegrityError as error:
        raise _taken(parts) from error


def _locked(file: StoredFile) -> StoredFile:
    row = StoredFile.objects.select_for_update().filter(pk=file.pk).first()
    if row is None:
        raise NotFound(f"There is no file {quoted(str(file.pk))}.")
    return row


def _taken(parts: Parts) -> Conflict:
    return Conflict(
        f"{quoted('/'.join(parts))} exists. Choose another name, or send overwrite=true to replace a file.",
        code="already_exists",
        field="name",
    )
