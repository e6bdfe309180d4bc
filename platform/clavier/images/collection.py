"""What of the image store and of the engines is still wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from django.conf import settings

from clavier.images.models import ImageVersion
from clavier.images.queries import live_runs_with
from clavier.images.store import is_old, output_path


def is_wanted(image_id: str) -> bool:
    """Whether a version or an unfinished run names the image."""
    return ImageVersion.objects.filter(content_id=image_id).exists() or live_runs_with(image_id).exists()


def lost_archives() -> Iterator[ImageVersion]:
    """Ready versions whose archive the store lacks while their import's output has it: after a restore."""
    for version in ImageVersion.objects.filter(state="ready").select_related("image"):
        if version.run_id is not None and not version.archive.exists() and output_path(version.run_id).is_file():
            yield version


def abandoned_logins() -> Iterator[Path]:
    """Logins of imports that have ended, or never began."""
    folder = Path(settings.CLAVIER_SECRETS)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if is_old(path) and not ImageVersion.objects.filter(pk=UUID(path.stem), state="importing").exists():
            yield path
