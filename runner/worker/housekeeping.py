"""Removes what killed processes left half done, before I7 would complain."""

from __future__ import annotations

import logging
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
from runner.contract import trees

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
            try:
                import_string(sweep)()
            except Exception:  # one sweep must not keep the others from their turn
                logger.exception("the sweep %s failed; trying again", sweep)


def remove_abandoned() -> list[Path]:
    """Remove it now; what was removed. The folder of a live run is its program's own affair."""
    removed = remove_old(Path(settings.FILE_UPLOAD_TEMP_DIR), "", deepest=0)
    lately = timezone.now() - timedelta(days=1)
    for pk in Run.objects.filter(state__in=FINAL_STATES, ended_at__gte=lately).values_list("pk", flat=True):
        removed += remove_old(run_folder(pk), ".tmp")
    return removed


def remove_old(root: Path, prefix: str, *, deepest: int | None = None) -> list[Path]:
    """Remove what has such a name and has not changed for long; what was removed."""
    removed = []
    oldest = time.time() - ABANDONED_AFTER_S
    try:
        for entry in trees.walk(root, deepest=deepest):
            with suppress(FileNotFoundError):
                if entry.name.startswith(prefix) and entry.status().st_mtime < oldest:
                    trees.remove_tree(entry.name, dir_fd=entry.folder)
                    removed.append(root / entry.path)
                    logger.info("removed %s, which a killed process had left", removed[-1])
    except OSError as error:
        logger.warning("what was left in %s can not be removed: %s", root, error)
    return removed
