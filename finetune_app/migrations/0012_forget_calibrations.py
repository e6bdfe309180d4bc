"""What finished runs have taught was about the formula before: the estimate of memory follows the recipe now."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def forget(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """The next runs teach the new formula."""
    apps.get_model("finetune_app", "TrainingCalibration").objects.all().delete()


class Migration(migrations.Migration):
    dependencies: ClassVar = [("finetune_app", "0011_task_tokenizer")]
    operations: ClassVar = [migrations.RunPython(forget, migrations.RunPython.noop)]
