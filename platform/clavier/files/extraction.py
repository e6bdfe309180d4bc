"""Unpacking an archive among a user's files: every file of it, or none."""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import ExitStack
from pathlib import Path

from django.conf import settings
from django.db import transaction

from clavier.accounts.access import require_write
from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Unprocessable
from clavier.core.ownership import share_with_tenant
from clavier.files.access import parse_area
from clavier.files.archives import Entry, read_archive
from clavier.files.models import StoredFile
from clavier.files.names import parse_user_path
from clavier.files.services import Incoming, open_stored_file, require_folder, store
from clavier.files.storage import INCOMING, Staged, disk_changes, make_root, refuse_low_disk


def extract_archive(
    *, actor: Actor, file: StoredFile, area: str, folder: str = "", overwrite: bool = False
) -> list[StoredFile]:
    """Unpack a zip, tar or tar.gz that the actor may read into an existing folder of its own area.

    Raises what ``read_archive`` and ``upload_files`` raise; nothing is left when it does.
    """
    require_write(actor)
    parse_area(area)
    base = parse_user_path(folder, field="folder")
    number = own_tenant(actor).number
    with ExitStack() as cleanup:
        stream = cleanup.enter_context(open_stored_file(actor=actor, file=file))
        incoming = []
        for entry in read_archive(stream, name=file.name, size_bytes=file.size_bytes):
            staged, sha256 = _staged(entry, cleanup)
            share_with_tenant(staged.path, number)
            incoming.append(Incoming(base + entry.parts, staged, sha256))
        if not incoming:
            raise Unprocessable("The archive has no files.", code="empty_archive")
        with disk_changes(settings.CLAVIER_FILES) as disk, transaction.atomic(durable=True):
            require_folder(actor, area, base)
            return store(actor, area, incoming, overwrite, disk)


def _staged(entry: Entry, cleanup: ExitStack) -> tuple[Staged, str]:
    """An entry's bytes, durable on the file system of their destination, and their sha256. Raises StorageFull."""
    root: Path = settings.CLAVIER_FILES
    make_root(root)
    folder = root / INCOMING
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / uuid.uuid4().hex
    cleanup.callback(path.unlink, missing_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as target:
        for chunk in entry.chunks:
            refuse_low_disk(root, len(chunk), "file")
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        target.flush()
        os.fsync(target.fileno())
    return Staged(path, size), digest.hexdigest()
