"""A trigger that refuses an illegal edge of a run's state and any change of a final one."""

from __future__ import annotations

from typing import Any

from django.db import migrations

EDGES = {
    "PENDING": ("PREPARING", "STOPPED", "FAILED"),
    "PREPARING": ("RUNNING", "STOPPING", "COMPLETED", "FAILED"),
    "RUNNING": ("STOPPING", "COMPLETED", "FAILED"),
    "STOPPING": ("STOPPED",),
}

LEGAL = " OR ".join(
    f"(OLD.state = '{source}' AND NEW.state IN ({', '.join(repr(target) for target in targets)}))"
    for source, targets in EDGES.items()
)

SQLITE = f"""
CREATE TRIGGER runs_run_state_guard BEFORE UPDATE OF state ON runs_run
WHEN OLD.state <> NEW.state AND NOT ({LEGAL})
BEGIN SELECT RAISE(ABORT, 'illegal change of a run state'); END;
"""

POSTGRESQL = f"""
CREATE FUNCTION runs_run_state_guard() RETURNS trigger AS $$
BEGIN
  IF OLD.state <> NEW.state AND NOT ({LEGAL}) THEN
    RAISE EXCEPTION 'illegal change of a run state: % -> %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER runs_run_state_guard BEFORE UPDATE OF state ON runs_run
FOR EACH ROW EXECUTE FUNCTION runs_run_state_guard();
"""


def create(apps: Any, schema_editor: Any) -> None:
    """Install the trigger of the database in use."""
    sql = {"sqlite": SQLITE, "postgresql": POSTGRESQL}[schema_editor.connection.vendor]
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(sql)


def drop(apps: Any, schema_editor: Any) -> None:
    """Remove it."""
    table = " ON runs_run" if schema_editor.connection.vendor == "postgresql" else ""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER runs_run_state_guard{table}")
        if table:
            cursor.execute("DROP FUNCTION runs_run_state_guard()")


class Migration(migrations.Migration):
    dependencies = [("runs", "0001_initial")]
    operations = [migrations.RunPython(create, drop)]
