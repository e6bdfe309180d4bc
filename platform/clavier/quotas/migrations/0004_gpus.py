import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("quotas", "0003_node_engine"),
    ]

    operations = [
        migrations.AlterField(
            model_name="usage",
            name="resource",
            field=models.CharField(
                choices=[
                    ("running_runs", "running_runs"),
                    ("cpu_milli", "cpu_milli"),
                    ("memory_mib", "memory_mib"),
                    ("gpus", "gpus"),
                    ("vgpus", "vgpus"),
                    ("mig_devices", "mig_devices"),
                ],
                max_length=20,
            ),
        ),
        migrations.CreateModel(
            name="Gpu",
            fields=[
                (
                    "uuid",
                    models.CharField(
                        help_text="GPU-... or MIG-..., as nvidia-smi -L prints it.",
                        max_length=80,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("index", models.PositiveSmallIntegerField(default=0)),
                ("name", models.CharField(blank=True, max_length=100)),
                ("memory_mib", models.PositiveIntegerField()),
                (
                    "mig_profile",
                    models.CharField(blank=True, help_text="Such as 1g.10gb. Blank: a whole GPU.", max_length=20),
                ),
                (
                    "parent_uuid",
                    models.CharField(
                        blank=True, help_text="Of a MIG device: the GPU that it is cut from.", max_length=80
                    ),
                ),
                (
                    "allows_sharing",
                    models.BooleanField(default=False, help_text="Shares of it may be booked: counted, not enforced."),
                ),
                (
                    "is_healthy",
                    models.BooleanField(default=True, help_text="Off: its holders go on, it is not booked again."),
                ),
                (
                    "cores_used",
                    models.PositiveSmallIntegerField(default=0, editable=False, help_text="Percent of its time."),
                ),
                ("memory_used_mib", models.PositiveIntegerField(default=0, editable=False)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "node",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="gpu_devices", to="quotas.node"
                    ),
                ),
            ],
            options={
                "verbose_name": "GPU",
                "ordering": ["node__name", "index", "uuid"],
            },
        ),
        migrations.CreateModel(
            name="GpuBooking",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("attempt_id", models.UUIDField(db_index=True)),
                ("rank", models.PositiveSmallIntegerField(default=0)),
                ("is_whole", models.BooleanField()),
                ("cores_percent", models.PositiveSmallIntegerField()),
                ("memory_mib", models.PositiveIntegerField()),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("released_at", models.DateTimeField(blank=True, null=True)),
                (
                    "gpu",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="bookings", to="quotas.gpu"
                    ),
                ),
            ],
            options={
                "verbose_name": "GPU booking",
            },
        ),
        migrations.AddConstraint(
            model_name="gpu",
            constraint=models.CheckConstraint(
                condition=models.Q(("cores_used__gte", 0), ("cores_used__lte", 100)), name="gpu_cores_in_range"
            ),
        ),
        migrations.AddConstraint(
            model_name="gpu",
            constraint=models.CheckConstraint(
                condition=models.Q(("memory_used_mib__gte", 0), ("memory_used_mib__lte", models.F("memory_mib"))),
                name="gpu_memory_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="gpu",
            constraint=models.CheckConstraint(condition=models.Q(("memory_mib__gt", 0)), name="gpu_has_memory"),
        ),
        migrations.AddIndex(
            model_name="gpubooking",
            index=models.Index(models.F("gpu"), condition=models.Q(("released_at", None)), name="gpu_booking_open"),
        ),
        migrations.AddConstraint(
            model_name="gpubooking",
            constraint=models.UniqueConstraint(fields=("attempt_id", "rank", "gpu"), name="gpu_booking_once"),
        ),
        migrations.AddConstraint(
            model_name="gpubooking",
            constraint=models.UniqueConstraint(
                condition=models.Q(("is_whole", True), ("released_at", None)),
                fields=("gpu",),
                name="gpu_one_whole_holder",
            ),
        ),
    ]
