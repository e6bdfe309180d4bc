"""Who may see and change which file."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Q, QuerySet

from clavier.accounts.access import access_object, require_change
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, quoted
from clavier.files.models import AREAS, StoredFile


def visible_files(actor: Actor) -> QuerySet[StoredFile]:
    """The actor's own files and the public ones of its tenant."""
    return StoredFile.objects.filter(Q(created_by_id=actor.user_id) | Q(area="public"), tenant_id=actor.tenant_id)


def access_file(actor: Actor, file_id: UUID | str, *, field: str | None = None) -> StoredFile:
    """A file or folder that the actor may read. Raises NotFound, also for private files of the same tenant."""
    return access_object(visible_files(actor), actor, file_id, noun="file", field=field)


def require_file_change(actor: Actor, file: StoredFile) -> StoredFile:
    """The file as it is now. Raises NotFound, Forbidden unless the actor owns it or manages the tenant."""
    found = access_file(actor, file.pk)
    require_change(actor, found, noun="file")
    return found


def parse_area(area: str) -> str:
    """Raises Invalid (``not_a_choice``)."""
    if area not in AREAS:
        raise Invalid(f"area {quoted(area)} is none of {', '.join(AREAS)}.", code="not_a_choice", field="area")
    return area
