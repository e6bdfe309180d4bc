"""What an operator may have got wrong, or a restore may have lost: nothing of it is a run's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from clavier.core.disk import low_disks
from clavier.runs import queue
from clavier.runs.queries import reconciler_is_alive


def installation_findings() -> list[str]:
    """Everything that is wrong with the installation, in words."""
    return [*_schema(), *_folders(), *_parts()]


def _schema() -> Iterator[str]:
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        yield f"{len(missing)} migrations are not applied ({missing[0][0]} first); run manage.py migrate"
        return
    table = "sqlite_master" if connection.vendor == "sqlite" else "pg_trigger"
    column = "name" if connection.vendor == "sqlite" else "tgname"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table} WHERE {column} = 'runs_run_state_guard'")
        if not cursor.fetchone()[0]:
            yield "the trigger runs_run_state_guard is gone: the database no longer refuses illegal states"


def _folders() -> Iterator[str]:
    home = Path(settings.CLAVIER_HOME)
    if not os.access(home, os.W_OK | os.X_OK):
        yield f"{home} can not be written to"
    executors = Path(settings.CLAVIER_EXECUTOR_FOLDER)
    for path in (home / "clavier.sqlite3", home / "secret_key", *executors.glob("*")):
        if path.exists() and path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP) & ~stat.S_IXOTH:
            yield f"{path} can be read by other users of this machine; run chmod go= {path}"


def _parts() -> Iterator[str]:
    if not queue.ping():
        yield "the queue does not answer"
    if not reconciler_is_alive():
        yield "the reconciler has no heartbeat: runs neither start nor end"
    for words in low_disks():
        yield f"{words}: nothing new starts"
