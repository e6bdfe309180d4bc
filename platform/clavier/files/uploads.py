"""Uploads in parts: what has arrived stays through a broken connection or a killed process; the rest is sent later.

A part file is locked by whoever writes to it; the row says how many of its bytes are durable.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.utils import timezone

from clavier.accounts.access import access_object, require_write
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, DomainError, Invalid, NotFound, QuotaExceeded, StorageFull, TooLarge, quoted
from clavier.core.ownership import share_with_tenant
from clavier.files.access import parse_area
from clavier.files.models import MIB, ResumableUpload, StoredFile
from clavier.files.names import parse_file_name, parse_user_path
from clavier.files.services import Incoming, refuse_taken, store
from clavier.files.storage import Staged, disk_changes, fsync_folder, make_root, refuse_low_disk, sha256_of
from clavier.files.usage import charge, release

FOLDER = ".resumable"
READ_BYTES = MIB
#: What a killed process loses at most of one long request.
DURABLE_EVERY_BYTES = 64 * MIB
REMOVED_AT_ONCE = 100


class UploadExpired(DomainError):
    """Nothing has come for too long (410)."""

    status = 410
    default_code = "upload_expired"


class UploadLocked(DomainError):
    """Another request is writing to it (423)."""

    status = 423
    default_code = "upload_locked"


class ChunkMismatch(DomainError):
    """The bytes of a chunk are not those of its checksum (460, a status of tus)."""

    status = 460
    default_code = "checksum_mismatch"


class FileMismatch(DomainError):
    """The bytes of the whole file are not those of its sha256 (422)."""

    status = 422
    default_code = "checksum_mismatch"


class Body(Protocol):
    """Bytes on their way in."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end. Raises OSError when the connection breaks."""


class Checksum(NamedTuple):
    """What a chunk shall hash to."""

    algorithm: str
    digest: bytes


def visible_uploads(actor: Actor) -> QuerySet[ResumableUpload]:
    """The actor's own."""
    return ResumableUpload.objects.filter(tenant_id=actor.tenant_id, created_by_id=actor.user_id).select_related(
        "created_by"
    )


def access_upload(actor: Actor, upload_id: UUID) -> ResumableUpload:
    """An upload of the actor's own. Raises NotFound, UploadExpired (which removes it)."""
    upload = access_object(visible_uploads(actor), actor, upload_id, noun="upload")
    if upload.expires_at <= timezone.now():
        with _locked(upload):
            _remove(upload)
        raise UploadExpired(
            f"The upload of {quoted(upload.path)} expired at {upload.expires_at:%Y-%m-%d %H:%M:%S} UTC; its bytes are "
            "gone. Create a new one."
        )
    return upload


def create_upload(
    *,
    actor: Actor,
    size_bytes: int,
    area: str,
    folder: str,
    name: str,
    sha256: str = "",
    overwrite: bool = False,
    metadata: str = "",
) -> ResumableUpload:
    """Reserve the storage of a file that comes in parts; missing folders are made when it is complete.

    Raises Forbidden, Invalid, Conflict (``already_exists``), TooLarge (``file_too_large``, ``quota_exceeded``),
    StorageFull, QuotaExceeded (``too_many_uploads``).
    """
    require_write(actor)
    parse_area(area)
    base = parse_user_path(folder, field="path")
    parts = parse_user_path("/".join((*base, parse_file_name(name, field="filename"))), field="path")
    refuse_taken(actor, area, [parts], overwrite)
    make_root(settings.CLAVIER_FILES)
    with transaction.atomic():
        _reserve(actor, size_bytes)
        if size_bytes > settings.MAX_UPLOAD_MIB * MIB:
            message = f"Upload-Length is {size_bytes / MIB:,.0f} MiB; {settings.MAX_UPLOAD_MIB:,} MiB are allowed."
            raise TooLarge(message, code="file_too_large", field="Upload-Length")
        refuse_low_disk(settings.CLAVIER_FILES, size_bytes, "Upload-Length")
        return ResumableUpload.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            area=area,
            path="/".join(parts),
            overwrite=overwrite,
            size_bytes=size_bytes,
            sha256=sha256,
            metadata=metadata,
            expires_at=_expiry(),
        )


def append(
    *, actor: Actor, upload: ResumableUpload, offset: int, body: Body, length: int, checksum: Checksum | None = None
) -> ResumableUpload:
    """Take in ``length`` bytes at ``offset`` and make them durable; of a broken connection, what came before it.

    With a checksum all of them or none. Raises Forbidden, UploadLocked, NotFound, Conflict (``offset_mismatch``),
    TooLarge (``length_exceeded``), ChunkMismatch, StorageFull, Invalid (``client_disconnected``).
    """
    require_write(actor)
    with _locked(upload) as descriptor:
        have = _offset(upload, descriptor)
        if offset != have:
            raise Conflict(
                f"Upload-Offset {offset} was sent, but the upload's offset is {have}. Go on from there.",
                code="offset_mismatch",
                field="Upload-Offset",
            )
        if have + length > upload.size_bytes:
            raise TooLarge(
                f"{length:,} bytes from offset {have:,} on end past the Upload-Length of {upload.size_bytes:,} bytes.",
                code="length_exceeded",
                field="Upload-Length",
            )
        refuse_low_disk(settings.CLAVIER_FILES, length, None)
        # Behind the offset lies what a killed process had written and not made durable.
        os.ftruncate(descriptor, have)
        os.lseek(descriptor, have, os.SEEK_SET)
        if not have:
            fsync_folder(_folder())
        _take_in(upload, descriptor, body, length, checksum)
    return upload


def complete_upload(*, actor: Actor, upload: ResumableUpload, sha256: str = "", overwrite: bool = False) -> StoredFile:
    """Make the stored file of an upload whose bytes are all there.

    Raises Forbidden, UploadLocked, NotFound, Conflict (``incomplete``, ``already_exists``), StorageFull, FileMismatch:
    then it starts again at offset 0.
    """
    require_write(actor)
    with _locked(upload) as descriptor:
        have = _offset(upload, descriptor)
        if have < upload.size_bytes:
            raise Conflict(
                f"The upload's offset is {have} of {upload.size_bytes}. Send the other "
                f"{upload.size_bytes - have:,} bytes first.",
                code="incomplete",
            )
        os.ftruncate(descriptor, have)
        path, number = _part(upload.pk), own_tenant(actor).number
        found = sha256_of(path)
        for expected in filter(None, (upload.sha256, sha256)):
            if expected != found:
                _received(upload, 0)
                raise FileMismatch(
                    f"sha256: expected {expected}, got {found}. Send the file again from offset 0.", field="sha256"
                )
        share_with_tenant(path, number)
        incoming = Incoming(tuple(upload.path.split("/")), Staged(path, have), found)
        with disk_changes(settings.CLAVIER_FILES) as disk, transaction.atomic(durable=True):
            _delete_row(upload)
            return store(actor, upload.area, [incoming], upload.overwrite or overwrite, disk)[0]


def delete_upload(*, actor: Actor, upload: ResumableUpload) -> None:
    """Give it up: its bytes and what they were charged are free again. Raises Forbidden, UploadLocked, NotFound."""
    require_write(actor)
    with _locked(upload):
        _remove(upload)


def offset_of(upload: ResumableUpload) -> int:
    """How many bytes are here: where the next chunk starts. After a restore from a backup none are."""
    with suppress(FileNotFoundError):
        return min(upload.received_bytes, _part(upload.pk).stat().st_size)
    return 0


def remove_expired() -> None:
    """Remove some of the expired uploads, and part files without an upload. Called every few minutes."""
    for upload in ResumableUpload.objects.filter(expires_at__lte=timezone.now())[:REMOVED_AT_ONCE]:
        with suppress(UploadLocked, NotFound), _locked(upload):
            _remove(upload)
    folder = _folder()
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in names - {str(pk) for pk in ResumableUpload.objects.values_list("pk", flat=True)}:
        (folder / name).unlink(missing_ok=True)


def open_uploads() -> QuerySet[ResumableUpload, tuple[UUID, UUID, int, int]]:
    """Rows of (tenant, user, bytes, inodes): what open uploads are charged with."""
    return (
        ResumableUpload.objects.order_by()
        .values("tenant_id", "created_by_id")
        .annotate(size=Sum("size_bytes"), inodes=Count("pk"))
        .values_list("tenant_id", "created_by_id", "size", "inodes")
    )


def _reserve(actor: Actor, size_bytes: int) -> None:
    """Charge the whole length. The charge locks the user's row, so nobody counts at the same time."""
    try:
        charge(tenant_id=actor.tenant_id, user_id=actor.user_id, size_bytes=size_bytes, inodes=1, field="Upload-Length")
    except StorageFull as full:
        raise TooLarge(full.message, code=full.code, field=full.field) from full
    num_open, limit = visible_uploads(actor).count(), settings.MAX_OPEN_UPLOADS
    if num_open >= limit:
        raise QuotaExceeded(
            f"You have {num_open:,} open uploads; the limit is {limit:,}. Complete or delete some first.",
            code="too_many_uploads",
        )


def _take_in(upload: ResumableUpload, descriptor: int, body: Body, length: int, checksum: Checksum | None) -> None:
    """The bytes of one request. Raises ChunkMismatch, Invalid."""
    digest = hashlib.new(checksum.algorithm) if checksum else None
    at = start = durable = upload.received_bytes
    try:
        while at - start < length and (piece := body.read(min(READ_BYTES, length - (at - start)))):
            _write(descriptor, piece)
            at += len(piece)
            if digest:
                digest.update(piece)
            elif at - durable >= DURABLE_EVERY_BYTES:
                os.fsync(descriptor)
                _received(upload, at)
                durable = at
    finally:
        is_whole = at - start == length
        os.fsync(descriptor)
        if checksum is None or (digest and is_whole and digest.digest() == checksum.digest):
            _received(upload, at)
        else:
            os.ftruncate(descriptor, start)
    if not is_whole:
        raise Invalid(
            f"The connection ended after {at - start:,} of {length:,} bytes. Ask for the offset and go on from there.",
            code="client_disconnected",
        )
    if checksum and digest and digest.digest() != checksum.digest:
        told, got = (base64.b64encode(value).decode() for value in (checksum.digest, digest.digest()))
        raise ChunkMismatch(
            f"Upload-Checksum: expected {checksum.algorithm} {told}, got {got}. Send the chunk again.",
            field="Upload-Checksum",
        )


def _write(descriptor: int, piece: bytes) -> None:
    """All of it; the system may take less at once."""
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _received(upload: ResumableUpload, size_bytes: int) -> None:
    """So many bytes are durable."""
    upload.received_bytes, upload.expires_at = size_bytes, _expiry()
    ResumableUpload.objects.filter(pk=upload.pk).update(
        received_bytes=upload.received_bytes, expires_at=upload.expires_at, updated_at=timezone.now()
    )


def _offset(upload: ResumableUpload, descriptor: int) -> int:
    upload.received_bytes = min(upload.received_bytes, os.fstat(descriptor).st_size)
    return upload.received_bytes


@contextmanager
def _locked(upload: ResumableUpload) -> Iterator[int]:
    """A descriptor of the part file for one at a time, and the row as it is now. The lock dies with its process.

    Raises UploadLocked, NotFound.
    """
    make_root(settings.CLAVIER_FILES)
    _folder().mkdir(mode=0o700, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(_part(upload.pk), flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UploadLocked(
                "Another request is writing to this upload. Wait for its end and ask for the offset."
            ) from error
        try:
            upload.refresh_from_db()
        except ResumableUpload.DoesNotExist as error:
            _part(upload.pk).unlink(missing_ok=True)
            raise NotFound(f"There is no upload {quoted(str(upload.pk))}.") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(upload: ResumableUpload) -> None:
    with transaction.atomic(durable=True):
        _delete_row(upload)
    _part(upload.pk).unlink(missing_ok=True)


def _delete_row(upload: ResumableUpload) -> None:
    """In a transaction: the row, and what it was charged."""
    ResumableUpload.objects.filter(pk=upload.pk).delete()
    release(tenant_id=upload.tenant_id, user_id=upload.created_by_id, size_bytes=upload.size_bytes, inodes=1)


def _expiry() -> datetime:
    return timezone.now() + timedelta(seconds=settings.RESUMABLE_KEPT_S)


def _folder() -> Path:
    return Path(settings.CLAVIER_FILES) / FOLDER


def _part(upload_id: UUID) -> Path:
    return _folder() / str(upload_id)
