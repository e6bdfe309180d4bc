"""Columns for set-based scheduling, further containers of an attempt, and the request to make room."""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("quotas", "0001_initial"),
        ("runs", "0003_image_import_kind"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Peer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("rank", models.PositiveIntegerField()),
            ],
            options={
                "ordering": ["rank"],
            },
        ),
        migrations.RemoveIndex(
            model_name="run",
            name="run_queue",
        ),
        migrations.RemoveField(
            model_name="run",
            name="why",
        ),
        migrations.AddField(
            model_name="attempt",
            name="leave_asked_at",
            field=models.DateTimeField(
                blank=True, help_text="When it was asked to make room; its run then waits again.", null=True
            ),
        ),
        migrations.AddField(
            model_name="run",
            name="cpu_milli",
            field=models.PositiveBigIntegerField(default=0, editable=False, help_text="Of all containers together."),
        ),
        migrations.AddField(
            model_name="run",
            name="gpus",
            field=models.PositiveIntegerField(
                default=0, editable=False, help_text="Whole ones, of all containers together."
            ),
        ),
        migrations.AddField(
            model_name="run",
            name="is_urgent",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="run",
            name="memory_mib",
            field=models.PositiveBigIntegerField(default=0, editable=False, help_text="Of all containers together."),
        ),
        migrations.AddField(
            model_name="run",
            name="num_containers",
            field=models.PositiveIntegerField(default=1, editable=False),
        ),
        migrations.AddField(
            model_name="run",
            name="preempted_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="preemptible",
            field=models.BooleanField(default=False, editable=False),
        ),
        migrations.AddField(
            model_name="run",
            name="queued_at",
            field=models.DateTimeField(
                default=django.utils.timezone.now, editable=False, help_text="Since when it waits (last)."
            ),
        ),
        migrations.AddField(
            model_name="run",
            name="shape",
            field=models.CharField(
                blank=True, editable=False, help_text="Equal: fits where the other fits.", max_length=32
            ),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="end_reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("COMPLETED", "COMPLETED"),
                    ("EXIT_NONZERO", "EXIT_NONZERO"),
                    ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
                    ("TIME_LIMIT", "TIME_LIMIT"),
                    ("COMMAND_NOT_FOUND", "COMMAND_NOT_FOUND"),
                    ("IMAGE_UNAVAILABLE", "IMAGE_UNAVAILABLE"),
                    ("NO_OUTPUT", "NO_OUTPUT"),
                    ("BAD_OUTPUT", "BAD_OUTPUT"),
                    ("STORAGE_QUOTA", "STORAGE_QUOTA"),
                    ("EXECUTOR_LOST", "EXECUTOR_LOST"),
                    ("INFRASTRUCTURE", "INFRASTRUCTURE"),
                    ("INVALID_SPEC", "INVALID_SPEC"),
                    ("STOPPED_BY_USER", "STOPPED_BY_USER"),
                    ("STOPPED_BY_OPERATOR", "STOPPED_BY_OPERATOR"),
                    ("PREEMPTED", "PREEMPTED"),
                ],
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="run",
            name="end_reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("COMPLETED", "COMPLETED"),
                    ("EXIT_NONZERO", "EXIT_NONZERO"),
                    ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
                    ("TIME_LIMIT", "TIME_LIMIT"),
                    ("COMMAND_NOT_FOUND", "COMMAND_NOT_FOUND"),
                    ("IMAGE_UNAVAILABLE", "IMAGE_UNAVAILABLE"),
                    ("NO_OUTPUT", "NO_OUTPUT"),
                    ("BAD_OUTPUT", "BAD_OUTPUT"),
                    ("STORAGE_QUOTA", "STORAGE_QUOTA"),
                    ("EXECUTOR_LOST", "EXECUTOR_LOST"),
                    ("INFRASTRUCTURE", "INFRASTRUCTURE"),
                    ("INVALID_SPEC", "INVALID_SPEC"),
                    ("STOPPED_BY_USER", "STOPPED_BY_USER"),
                    ("STOPPED_BY_OPERATOR", "STOPPED_BY_OPERATOR"),
                    ("PREEMPTED", "PREEMPTED"),
                ],
                editable=False,
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="run",
            name="stop_reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("COMPLETED", "COMPLETED"),
                    ("EXIT_NONZERO", "EXIT_NONZERO"),
                    ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
                    ("TIME_LIMIT", "TIME_LIMIT"),
                    ("COMMAND_NOT_FOUND", "COMMAND_NOT_FOUND"),
                    ("IMAGE_UNAVAILABLE", "IMAGE_UNAVAILABLE"),
                    ("NO_OUTPUT", "NO_OUTPUT"),
                    ("BAD_OUTPUT", "BAD_OUTPUT"),
                    ("STORAGE_QUOTA", "STORAGE_QUOTA"),
                    ("EXECUTOR_LOST", "EXECUTOR_LOST"),
                    ("INFRASTRUCTURE", "INFRASTRUCTURE"),
                    ("INVALID_SPEC", "INVALID_SPEC"),
                    ("STOPPED_BY_USER", "STOPPED_BY_USER"),
                    ("STOPPED_BY_OPERATOR", "STOPPED_BY_OPERATOR"),
                    ("PREEMPTED", "PREEMPTED"),
                ],
                editable=False,
                max_length=20,
            ),
        ),
        migrations.AddIndex(
            model_name="run",
            index=models.Index(
                fields=[
                    "state",
                    "resource_group",
                    "is_urgent",
                    "tenant",
                    "created_by",
                    "shape",
                    "-priority",
                    "created_at",
                    "id",
                    "cpu_milli",
                    "memory_mib",
                    "gpus",
                    "num_containers",
                    "not_before",
                    "queued_at",
                ],
                name="run_queue_covering",
            ),
        ),
        migrations.AddField(
            model_name="peer",
            name="attempt",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="peers", to="runs.attempt"
            ),
        ),
        migrations.AddField(
            model_name="peer",
            name="node",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="peers", to="quotas.node"
            ),
        ),
        migrations.AddConstraint(
            model_name="peer",
            constraint=models.UniqueConstraint(fields=("attempt", "rank"), name="peer_once"),
        ),
        migrations.AddConstraint(
            model_name="peer",
            constraint=models.CheckConstraint(condition=models.Q(("rank__gte", 1)), name="peer_rank_from_one"),
        ),
    ]
