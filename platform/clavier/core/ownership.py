"""Whose a path on the disk is: the platform's to change, the tenant's programs' to read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: A tenant's programs run with uid and gid TENANT_ID_BASE + Tenant.number.
TENANT_ID_BASE = 200_000
FOLDER_MODE = 0o750
FILE_MODE = 0o640


def share_with_tenant(path: Path | str, tenant_number: int, *, dir_fd: int | None = None) -> None:
    """Let the tenant's programs read a file or pass a folder; only root gives it to their group. Links are refused.

    ``path``: relative to the folder behind ``dir_fd``, where one is given. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if os.geteuid() == 0:
            os.fchown(descriptor, 0, TENANT_ID_BASE + tenant_number)
        os.fchmod(descriptor, FOLDER_MODE if stat.S_ISDIR(os.fstat(descriptor).st_mode) else FILE_MODE)
    finally:
        os.close(descriptor)
