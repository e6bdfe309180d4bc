"""Where the files of a version lie: CLAVIER_DATASETS/tenant/version/."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from uuid import UUID

from django.conf import settings

ROWS = "rows.jsonl"
INDEX = "rows.idx"
OFFSET_BYTES = 8


def version_folder(tenant_id: UUID, version_id: UUID) -> Path:
    """The folder of a version."""
    root: Path = settings.CLAVIER_DATASETS
    return root / str(tenant_id) / str(version_id)


def original_name(file_format: str) -> str:
    """The uploaded bytes, untouched."""
    return f"original.{file_format}"


def footprint(folder: Path) -> tuple[int, int]:
    """Bytes and inodes that a version's folder takes up; a hard link counts once."""
    sizes = {info.st_ino: info.st_size for info in (path.lstat() for path in folder.iterdir())}
    return sum(sizes.values()), len(sizes) + 1


def little_endian(offsets: array[int]) -> array[int]:
    """The offsets in the byte order of ``rows.idx``, or back from it."""
    if sys.byteorder == "big":
        offsets.byteswap()
    return offsets
