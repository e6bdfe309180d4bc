"""The image store on the platform's disk: one archive per image id. Engines are caches of it."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from django.conf import settings

from clavier.images.models import archive_name
from clavier.runs.outputs import run_folder
from runner.contract import folder

TRASH = ".trash"
#: Longer than any transaction between an archive's placing and the row that names it.
YOUNG_S = 3600.0
_NAME = re.compile(r"([0-9a-f]{64})\.tar")


def place_archive(run_id: UUID, image_id: str) -> None:
    """Link the archive that an import has made into the store; what lies there under the id is the same content.

    A link, no move and no copy: the run keeps its output, and a crash before the commit leaves a name to collect.
    """
    source, store = output_path(run_id), store_folder()
    os.utime(source)
    temporary = store / f".tmp-{uuid.uuid4().hex}"
    os.link(source, temporary, follow_symlinks=False)
    os.replace(temporary, store / archive_name(image_id))
    # Two names of one file: a rename between them does nothing, so the temporary one may be left.
    temporary.unlink(missing_ok=True)


def abandoned_archives(is_named: Callable[[str], bool]) -> Iterator[Path]:
    """Archives that nothing names and that are not young. ``is_named``: whether an image id is still wanted."""
    for path in sorted(store_folder().iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and is_old(path) and not is_named(f"sha256:{match[1]}"):
            yield path


def discard_archive(path: Path) -> bool:
    """Delete an abandoned archive; False where an import has placed it anew meanwhile."""
    trash = store_folder() / TRASH
    trash.mkdir(mode=0o700, exist_ok=True)
    aside = trash / uuid.uuid4().hex
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    is_abandoned = is_old(aside)
    if not is_abandoned:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    return is_abandoned


def output_path(run_id: UUID) -> Path:
    """The archive that an import has made."""
    return run_folder(run_id) / folder.OUTPUT / folder.IMAGE


def store_folder() -> Path:
    """The store's folder, made on first use; only the platform reads it."""
    store = Path(settings.CLAVIER_IMAGES)
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    return store


def is_old(path: Path) -> bool:
    """Nobody has placed the archive within the last hour."""
    return time.time() - path.stat().st_mtime > YOUNG_S
