"""The trigger again, with the edges by which a preempted run waits again."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from clavier.runs.migrations._state_guard import install

BEFORE = {
    "PENDING": ("PREPARING", "STOPPED", "FAILED"),
    "PREPARING": ("RUNNING", "STOPPING", "COMPLETED", "FAILED"),
    "RUNNING": ("STOPPING", "COMPLETED", "FAILED"),
    "STOPPING": ("STOPPED",),
}
EDGES = BEFORE | {
    "PREPARING": (*BEFORE["PREPARING"], "PENDING"),
    "RUNNING": (*BEFORE["RUNNING"], "PENDING"),
}


def create(apps: Any, schema_editor: Any) -> None:
    """With the new edges."""
    install(schema_editor, EDGES)


def go_back(apps: Any, schema_editor: Any) -> None:
    """With the edges of before."""
    install(schema_editor, BEFORE)


class Migration(migrations.Migration):
    dependencies = [("runs", "0004_scheduling")]
    operations = [migrations.RunPython(create, go_back)]
