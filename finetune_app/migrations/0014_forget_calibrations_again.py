"""What finished runs have taught was of models of any size together, of times with their waits, of GPUs' main memory."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def forget(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """The next runs teach anew."""
    apps.get_model("finetune_app", "TrainingCalibration").objects.all().delete()


class Migration(migrations.Migration):
    dependencies: ClassVar = [("finetune_app", "0013_calibrate_by_size")]
    operations: ClassVar = [migrations.RunPython(forget, migrations.RunPython.noop)]
