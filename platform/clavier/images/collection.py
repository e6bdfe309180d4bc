"""What of the image store and of the engines is still wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from clavier.images.models import ImageVersion
from clavier.images.queries import live_runs_with
from clavier.images.store import is_old, output_path
from clavier.runs.models import Run
from clavier.runs.states import LIVE_STATES


def is_wanted(image_id: str) -> bool:
    """Whether a version or an unfinished run names the image."""
    return ImageVersion.objects.filter(content_id=image_id).exists() or live_runs_with(image_id).exists()


def lost_archives() -> Iterator[ImageVersion]:
    """Ready versions whose archive the store lacks while their import's output has it: after a restore."""
    for version in ImageVersion.objects.filter(state="ready").select_related("image"):
        if version.run_id is not None and not version.archive.exists() and output_path(version.run_id).is_file():
            yield version


def abandoned_logins() -> Iterator[Path]:
    """Logins whose run has ended, or never began: of imports of images and models, of fetched data and folders."""
    specs = Run.objects.filter(state__in=LIVE_STATES).values_list("spec", flat=True)
    wanted = {mount["source"] for spec in specs for mount in spec["mounts"]}
    folder = Path(settings.CLAVIER_SECRETS)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if is_old(path) and str(path) not in wanted:
            yield path
