"""Many queries that see the database as of one moment, without holding anybody up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction


@contextmanager
def snapshot() -> Iterator[None]:
    """Read inside the block as of its first query; inside a transaction: as that transaction sees it."""
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        database: Any = connection  # django-stubs do not know SQLite's own attribute
        mode = database.transaction_mode
        database.transaction_mode = "DEFERRED"  # the usual IMMEDIATE would keep every writer out
        try:
            with transaction.atomic():
                yield
        finally:
            database.transaction_mode = mode
    else:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
