"""Row N of a version of any size by two seeks, and the uploaded file."""

from __future__ import annotations

import json
from array import array
from typing import Any, BinaryIO

from django.conf import settings

from clavier.core.errors import Invalid
from clavier.files.storage import open_regular
from datasets_app.models import DatasetVersion
from datasets_app.storage import INDEX, OFFSET_BYTES, ROWS, little_endian, original_name

MAX_ROWS_AT_ONCE = 500
MAX_BYTES_AT_ONCE = 32 * 2**20


def read_rows(version: DatasetVersion, start: int, count: int) -> list[dict[str, Any]]:
    """Up to ``count`` rows from number ``start`` (from 0); fewer at the end or after 32 MiB, at least one.

    Raises Invalid (``out_of_range``), NotFound when the files are gone.
    """
    if start < 0:
        raise Invalid(f"start is {start}; it is a row number from 0.", code="out_of_range", field="start")
    if not 1 <= count <= MAX_ROWS_AT_ONCE:
        raise Invalid(
            f"count is {count}; 1 to {MAX_ROWS_AT_ONCE} rows are read at once.", code="out_of_range", field="count"
        )
    folder = (str(version.tenant_id), str(version.pk))
    if start >= version.num_samples:
        return []
    with open_regular(settings.CLAVIER_DATASETS, (*folder, INDEX)) as index:
        index.seek(start * OFFSET_BYTES)
        offsets = array("Q")
        offsets.frombytes(index.read((count + 1) * OFFSET_BYTES))
    bounds = list(little_endian(offsets))
    with open_regular(settings.CLAVIER_DATASETS, (*folder, ROWS)) as rows:
        wanted = min(count, version.num_samples - start)
        if len(bounds) <= wanted:
            bounds.append(rows.seek(0, 2))
        rows.seek(bounds[0])
        return [json.loads(rows.read(bounds[i + 1] - bounds[i])) for i in range(_fitting(bounds))]


def open_original(version: DatasetVersion) -> BinaryIO:
    """The file as it was uploaded, seekable. Raises NotFound when it is gone."""
    parts = (str(version.tenant_id), str(version.pk), original_name(version.format))
    return open_regular(settings.CLAVIER_DATASETS, parts)


def _fitting(bounds: list[int]) -> int:
    """How many of the rows between the bounds are within the limit of bytes."""
    rows = len(bounds) - 1
    return max(1, next((i for i in range(rows) if bounds[i + 1] - bounds[0] > MAX_BYTES_AT_ONCE), rows))
