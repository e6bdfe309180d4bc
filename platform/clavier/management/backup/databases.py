"""A database into a file and back: SQLite by its backup interface, PostgreSQL by pg_dump and pg_restore."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from django.db import connection, connections, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from clavier.management.backup.manifest import BackupError

FILE_OF = {"sqlite": "database.sqlite3", "postgresql": "database.dump"}
SNAPSHOT = "backup_snapshot"


@contextmanager
def dumped(folder: Path) -> Iterator[str]:
    """Dump into a folder; inside the block an alias under which the database can be read as of that moment."""
    target = folder / FILE_OF[connection.vendor]
    if connection.vendor == "sqlite":
        copy_sqlite(Path(str(connection.settings_dict["NAME"])), target)
        connections.databases[SNAPSHOT] = {**connection.settings_dict, "NAME": str(target), "OPTIONS": {}}
        try:
            yield SNAPSHOT
        finally:
            connections[SNAPSHOT].close()
            del connections[SNAPSHOT], connections.databases[SNAPSHOT]
        return
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SELECT pg_export_snapshot()")
        name = cursor.fetchone()[0]
        options = ["--format=custom", f"--snapshot={name}", "--no-owner", "--no-privileges", f"--file={target}"]
        run_tool("pg_dump", *options)
        yield "default"


def copy_sqlite(source: Path, target: Path) -> None:
    """A consistent copy, also while others write, checked and durable. Raises BackupError."""
    with closing(sqlite3.connect(source, timeout=60)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
        (answer,) = copy.execute("PRAGMA integrity_check").fetchone()
    if answer != "ok":
        raise BackupError(f"The copy of {source} is damaged: {answer}")
    with open(target, "rb") as stream:
        os.fsync(stream.fileno())


def restore(dump: Path, aside: str) -> str:
    """Put a dump in the place of the database; where the old one lies now, or nothing. Raises BackupError."""
    if connection.vendor == "sqlite":
        return restore_sqlite(dump, aside)
    return restore_postgresql(dump, aside)


def restore_sqlite(dump: Path, aside: str) -> str:
    """A rename; an old file is renamed too, with its journal."""
    connections.close_all()
    path = Path(str(connection.settings_dict["NAME"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = ""
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            kept = str(path.with_name(f"{path.name}.{aside}"))
            os.rename(old, f"{kept}{suffix}")
    new = path.with_name(f".{path.name}.new")
    shutil.copyfile(dump, new)
    new.chmod(0o600)
    os.rename(new, path)
    return kept


def restore_postgresql(dump: Path, aside: str) -> str:
    """One transaction of pg_restore; an old schema is renamed, and comes back when that fails."""
    run_tool("pg_restore", "--list", str(dump))
    kept = "" if is_empty() else aside.replace("-", "_")
    if kept:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f'ALTER SCHEMA public RENAME TO "{kept}"')
            cursor.execute("CREATE SCHEMA public")
    connections.close_all()
    name = str(connection.settings_dict["NAME"])
    try:
        options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--schema=public"]
        run_tool("pg_restore", *options, f"--dbname={name}", str(dump))
    except BackupError:
        if kept:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("DROP SCHEMA public CASCADE")
                cursor.execute(f'ALTER SCHEMA "{kept}" RENAME TO public')
        raise
    return f"schema {kept}" if kept else ""


def is_empty() -> bool:
    """The configured database has no table yet."""
    if connection.vendor == "sqlite" and not Path(str(connection.settings_dict["NAME"])).exists():
        return True
    return not connection.introspection.table_names()


def applied_migrations() -> list[list[str]]:
    """App and name of each migration that the database has."""
    return sorted([app, name] for app, name in MigrationRecorder(connection).applied_migrations())


def unknown_migrations(wanted: list[list[str]]) -> list[str]:
    """Migrations of a backup that this version of Clavier does not have."""
    known = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
    return [f"{app}.{name}" for app, name in wanted if (app, name) not in known]


def run_tool(name: str, *arguments: str) -> None:
    """One of PostgreSQL's own programs on the configured database. Raises BackupError with its words."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    program = str(found[-1]) if found else shutil.which(name)
    if program is None:
        raise BackupError(f"{name} is not installed here: apt-get install postgresql-client.")
    facts: dict[str, Any] = connection.settings_dict
    given = {"PGHOST": "HOST", "PGPORT": "PORT", "PGUSER": "USER", "PGPASSWORD": "PASSWORD", "PGDATABASE": "NAME"}
    own = {variable: str(facts[key]) for variable, key in given.items() if facts.get(key)}
    done = subprocess.run([program, *arguments], env=os.environ | own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupError(f"{name} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
