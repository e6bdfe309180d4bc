"""An index that covers what the runs of each tenant hold."""

from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("runs", "0006_fill_scheduling"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddIndex(
            model_name="run",
            index=models.Index(
                condition=models.Q(("state__in", ["PREPARING", "RUNNING", "STOPPING"])),
                fields=["resource_group", "tenant", "cpu_milli", "memory_mib", "gpus", "preemptible"],
                name="run_holding",
            ),
        ),
    ]
