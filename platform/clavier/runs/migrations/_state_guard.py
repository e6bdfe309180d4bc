"""The trigger that refuses an illegal edge of a run's state. SQLite drops it whenever Django rebuilds the table, so
every migration that alters ``runs_run`` ends by installing it again."""

from __future__ import annotations

from typing import Any

SQLITE = """
CREATE TRIGGER runs_run_state_guard BEFORE UPDATE OF state ON runs_run
WHEN OLD.state <> NEW.state AND NOT ({legal})
BEGIN SELECT RAISE(ABORT, 'illegal change of a run state'); END;
"""

POSTGRESQL = """
CREATE OR REPLACE FUNCTION runs_run_state_guard() RETURNS trigger AS $$
BEGIN
  IF OLD.state <> NEW.state AND NOT ({legal}) THEN
    RAISE EXCEPTION 'illegal change of a run state: % -> %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER runs_run_state_guard BEFORE UPDATE OF state ON runs_run
FOR EACH ROW EXECUTE FUNCTION runs_run_state_guard();
"""


def install(schema_editor: Any, edges: dict[str, tuple[str, ...]]) -> None:
    """The trigger of the database in use, in the place of an earlier one."""
    legal = " OR ".join(
        f"(OLD.state = '{source}' AND NEW.state IN ({', '.join(repr(target) for target in targets)}))"
        for source, targets in edges.items()
    )
    vendor = schema_editor.connection.vendor
    table = " ON runs_run" if vendor == "postgresql" else ""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER IF EXISTS runs_run_state_guard{table}")
        cursor.execute({"sqlite": SQLITE, "postgresql": POSTGRESQL}[vendor].format(legal=legal))
