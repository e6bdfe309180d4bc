"""Is there room on the platform's disks, and what it looks like when there was none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from django.conf import settings
from django.db import OperationalError


def low_disks() -> list[str]:
    """Of each store on which less than the reserve is free: where, how much, and what is kept back."""
    found: dict[int, str] = {}
    for folder in (settings.CLAVIER_HOME, settings.CLAVIER_RUNS, settings.CLAVIER_EXECUTOR_FOLDER):
        path = next(parent for parent in (Path(folder), *Path(folder).parents) if parent.exists())
        free_mib = shutil.disk_usage(path).free // 2**20
        if free_mib < settings.DISK_RESERVE_MIB:
            words = f"{free_mib} MiB free on the disk of {path}, {settings.DISK_RESERVE_MIB} MiB are kept in reserve"
            found.setdefault(path.stat().st_dev, words)
    return list(found.values())


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk or a quota of the file system is full, the database's own included."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, OperationalError) and ("disk is full" in str(error) or "No space left" in str(error)):
            return True
        error = error.__cause__
    return False
