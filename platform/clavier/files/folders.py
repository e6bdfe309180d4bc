"""Folders of a user's files as runs need them: named ``private/models/qwen``, found on the disk."""

from __future__ import annotations

from pathlib import Path

from clavier.accounts.queries import own_tenant
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, NotFound, quoted
from clavier.files.models import AREAS, StoredFile
from clavier.files.names import parse_user_path
from clavier.files.queries import row_at
from clavier.files.storage import area_folder


def parse_location(location: str, *, field: str) -> tuple[str, tuple[str, ...]]:
    """The area and the components of ``private/<path>`` or ``public/<path>``. Raises Invalid."""
    area, _, path = location.strip().strip("/").partition("/")
    parts = parse_user_path(path, field=field)
    if area not in AREAS or not parts:
        raise Invalid(
            f"{field} {quoted(location)}: give 'private/<folder>' or 'public/<folder>' of your files.",
            code="bad_value",
            field=field,
        )
    return area, parts


def own_row(actor: Actor, location: str, *, field: str) -> StoredFile:
    """The actor's own file or folder at a location. Raises Invalid, NotFound."""
    area, parts = parse_location(location, field=field)
    row = row_at(actor.tenant_id, actor.user_id, area, parts)
    if row is None:
        raise NotFound(f"There is no {quoted(location)} in your files.", field=field)
    return row


def named_file(actor: Actor, path: str, *, field: str) -> StoredFile:
    """A file or folder of the actor as a configuration names it: ``private/a.yaml``, or ``a.yaml`` of either area.

    Raises Invalid, NotFound.
    """
    parts = parse_user_path(path.strip(), field=field)
    places = [(area, parts) for area in AREAS]
    if parts[:1] and parts[0] in AREAS:
        places.insert(0, (parts[0], parts[1:]))
    for area, inner in places:
        row = row_at(actor.tenant_id, actor.user_id, area, inner) if inner else None
        if row is not None:
            return row
    raise NotFound(f"There is no {quoted(path)} in your files.", field=field)


def own_folder(actor: Actor, location: str, *, field: str) -> StoredFile:
    """The actor's own folder at a location. Raises Invalid, NotFound."""
    row = own_row(actor, location, field=field)
    if not row.is_folder:
        raise Invalid(f"{field} {quoted(location)} is a file; a folder is needed.", code="bad_value", field=field)
    return row


def disk_path(actor: Actor, row: StoredFile) -> Path:
    """Where a file or folder of the actor's tenant lies."""
    root = area_folder(row.tenant_id, row.created_by_id, row.area, own_tenant(actor).number)
    return root.joinpath(*row.path.split("/"))
