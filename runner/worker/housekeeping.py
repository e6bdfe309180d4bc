"""Removes what killed processes left half done, before I7 would complain."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import import_string

from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from clavier.runs.states import FINAL_STATES

logger = logging.getLogger(__name__)

EVERY_S = 300.0
WATCH_EVERY_S = 10.0
#: Nobody writes to it any more: an upload that goes on changes its file all the time.
ABANDONED_AFTER_S = 45 * 60.0


class RunWatches:
    """Every ten seconds: what domains watch of their live runs."""

    def __init__(self) -> None:
        self._next = time.monotonic() + WATCH_EVERY_S

    @property
    def is_due(self) -> bool:
        """It is time."""
        return time.monotonic() >= self._next

    def look(self) -> None:
        """Now."""
        self._next = time.monotonic() + WATCH_EVERY_S
        for watch in settings.WATCHES:
            import_string(watch)()


class Housekeeping:
    """Every five minutes: what dead processes left half done is removed, what lost its wake-up is woken."""

    def __init__(self) -> None:
        self._next = time.monotonic() + EVERY_S

    @property
    def is_due(self) -> bool:
        """It is time."""
        return time.monotonic() >= self._next

    def tidy(self) -> None:
        """Now."""
        self._next = time.monotonic() + EVERY_S
        remove_abandoned()
        for sweep in settings.SWEEPS:
            import_string(sweep)()


def remove_abandoned() -> list[Path]:
    """Remove it now; what was removed. The folder of a live run is its program's own affair."""
    candidates = list(Path(settings.FILE_UPLOAD_TEMP_DIR).glob("*"))
    lately = timezone.now() - timedelta(days=1)
    for pk in Run.objects.filter(state__in=FINAL_STATES, ended_at__gte=lately).values_list("pk", flat=True):
        candidates += run_folder(pk).rglob(".tmp*")
    removed = []
    oldest = time.time() - ABANDONED_AFTER_S
    for path in candidates:
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                removed.append(path)
                logger.info("removed %s, which a killed process had left", path)
    return removed
