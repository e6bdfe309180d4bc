"""Statements over many rows at once, where a model instance for each would cost more than the work itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, models

#: Below SQLite's and PostgreSQL's limits of parameters in one statement.
MAX_PARAMETERS = 30_000


def insert(model: type[models.Model], fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """INSERT the rows; every column that has no default in the database must be among the fields."""
    by_name = {column.name: column.column for column in model._meta.concrete_fields}
    names = ", ".join(connection.ops.quote_name(str(by_name[name])) for name in fields)
    table = connection.ops.quote_name(model._meta.db_table)
    at_once = MAX_PARAMETERS // len(fields)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({names}) VALUES {values_of(part)}", flat(part))


def update_from(statement: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run ``UPDATE t SET ... FROM given WHERE ...``, in which ``{given}`` has the columns column1, column2 ...

    How many rows were changed.
    """
    if not rows:
        return 0
    with connection.cursor() as cursor:
        # The columns of VALUES have the same names in SQLite and PostgreSQL.
        cursor.execute(statement.format(given=f"(VALUES {values_of(rows)}) AS given"), flat(rows))
        return int(cursor.rowcount)


def values_of(rows: Sequence[Sequence[Any]]) -> str:
    """The place holders of so many rows."""
    return ", ".join([f"({', '.join(['%s'] * len(rows[0]))})"] * len(rows))


def flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """The parameters of the rows, as the database in use wants them."""
    return [prepared(value) for row in rows for value in row]


def prepared(value: Any) -> Any:
    """A value as a parameter: SQLite knows neither UUIDs nor times."""
    if isinstance(value, UUID):
        return value if connection.features.has_native_uuid_field else value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value
