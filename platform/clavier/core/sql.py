"""Statements over many rows at once, where a model instance for each would cost more than the work itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, models

#: Below SQLite's limit of parameters in one statement. PostgreSQL gets one array for each column.
MAX_PARAMETERS = 30_000

Rows = Sequence[Sequence[Any]]


def insert(model: type[models.Model], fields: Sequence[str], rows: Rows) -> None:
    """INSERT the rows; every column that has no default in the database must be among the fields."""
    by_name = {column.name: column for column in model._meta.concrete_fields}
    names = ", ".join(connection.ops.quote_name(str(by_name[name].column)) for name in fields)
    table = connection.ops.quote_name(model._meta.db_table)
    types = [str(by_name[name].db_type(connection)) for name in fields]
    at_once = MAX_PARAMETERS // len(fields)
    for start in range(0, len(rows), at_once):
        source, parameters = given(rows[start : start + at_once], types)
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({names}) SELECT * FROM {source}", parameters)


def update_from(statement: str, types: Sequence[str], rows: Rows) -> int:
    """Run ``UPDATE t SET ... FROM {given} WHERE ...``; ``{given}`` has the columns column1, column2 ... of the rows.

    ``types``: of the columns, for PostgreSQL. How many rows were changed.
    """
    if not rows:
        return 0
    source, parameters = given(rows, types)
    with connection.cursor() as cursor:
        cursor.execute(statement.format(given=source), parameters)
        return int(cursor.rowcount)


def select(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows that a statement answers, as the driver gives them: SQLite knows neither UUIDs nor times."""
    with connection.cursor() as cursor:
        cursor.execute(statement, [prepared(value) for value in parameters])
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def given(rows: Rows, types: Sequence[str]) -> tuple[str, list[Any]]:
    """The rows as something to select from, with the columns column1, column2 ..., and its parameters."""
    if connection.vendor == "postgresql":
        arrays = ", ".join(f"%s::{kind}[]" for kind in types)
        columns = ", ".join(f"column{number + 1}" for number in range(len(types)))
        return f"unnest({arrays}) AS given({columns})", [list(column) for column in zip(*rows, strict=True)]
    marks = f"({', '.join(['%s'] * len(types))})"
    return f"(VALUES {', '.join([marks] * len(rows))}) AS given", [prepared(value) for row in rows for value in row]


def prepared(value: Any) -> Any:
    """A value as a parameter: SQLite knows neither UUIDs nor times."""
    if isinstance(value, UUID):
        return value if connection.features.has_native_uuid_field else value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value
