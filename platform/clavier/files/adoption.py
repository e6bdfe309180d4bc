"""What a run has made becomes files of its owner: linked, not copied, and charged like an upload."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.db import transaction

from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Invalid
from clavier.core.ownership import share_with_tenant
from clavier.core.paths import parse_path
from clavier.files.folders import parse_location
from clavier.files.services import Incoming, store
from clavier.files.storage import INCOMING, DiskChanges, Staged, make_root

#: Rows are written in the transaction that ends the run; more would hold up everybody else.
MAX_ADOPTED_FILES = 2000


def adopt_folder(*, actor: Actor, location: str, source: Path, field: str, skip: frozenset[str] = frozenset()) -> int:
    """Put the regular files beneath ``source`` into the actor's folder, and say how many there were.

    Call in the transaction that ends the run, when no program can change ``source`` any more. Files of an equal name
    are replaced, links and pipes left out; ``skip``: names at the top. The bytes stay where they are (hard links).
    Raises Invalid (``too_many_files``), Conflict where a file is a folder, StorageFull (``quota_exceeded``).
    """
    area, base = parse_location(location, field=field)
    number = own_tenant(actor).number
    make_root(settings.CLAVIER_FILES)
    incoming: list[Incoming] = []
    disk = DiskChanges(settings.CLAVIER_FILES)
    try:
        for parts, descriptor in regular_files(source, skip):
            if len(incoming) == MAX_ADOPTED_FILES:
                raise Invalid(
                    f"The run made more than {MAX_ADOPTED_FILES:,} files for {location}. Pack them, or keep fewer "
                    "checkpoints.",
                    code="too_many_files",
                    field=field,
                )
            staged = linked(source.joinpath(*parts), descriptor, parts[-1], number)
            if staged is not None:
                incoming.append(Incoming((*base, *parts), staged, ""))
        if incoming:
            with transaction.atomic():
                store(actor, area, incoming, overwrite=True, disk=disk)
    except BaseException:
        disk.undo()
        for item in incoming:
            item.staged.discard()
        raise
    transaction.on_commit(disk.finish)
    return len(incoming)


def regular_files(source: Path, skip: frozenset[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    """(path components, descriptor of the folder) of each regular file; no link is ever followed."""
    for folder, folders, names, descriptor in os.fwalk(source, follow_symlinks=False):
        inside = Path(folder).relative_to(source).parts
        folders.sort()
        for name in sorted(names):
            is_file = stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
            if is_file and (inside or name not in skip):
                yield parse_path("/".join((*inside, name))), descriptor


def linked(shown: Path, descriptor: int, name: str, tenant_number: int) -> Staged | None:
    """A second name for a file, beside the others that are on their way in; None when it is no file any more."""
    folder = settings.CLAVIER_FILES / INCOMING
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / uuid.uuid4().hex
    try:
        os.link(name, place, src_dir_fd=descriptor, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(shown, place, follow_symlinks=False)
    status = os.lstat(place)
    if not stat.S_ISREG(status.st_mode):
        place.unlink()
        return None
    share_with_tenant(place, tenant_number)
    return Staged(place, status.st_size)
