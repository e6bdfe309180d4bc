import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("quotas", "0004_gpus"),
    ]

    operations = [
        migrations.CreateModel(
            name="QuotaWindow",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("scope", models.CharField(choices=[("tenant", "tenant"), ("user", "user")], max_length=10)),
                ("scope_id", models.UUIDField()),
                ("valid_from", models.DateTimeField(blank=True, help_text="Blank: since ever.", null=True)),
                ("valid_until", models.DateTimeField(blank=True, help_text="Blank: for ever.", null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("scope", "scope_id"), name="quota_window_once"),
                    models.CheckConstraint(
                        condition=models.Q(("scope__in", ("tenant", "user"))), name="quota_window_scope_known"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("valid_from", None),
                            ("valid_until", None),
                            ("valid_from__lt", models.F("valid_until")),
                            _connector="OR",
                        ),
                        name="quota_window_in_order",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="TenantShare",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("cpu_milli", models.PositiveBigIntegerField(default=0)),
                ("memory_mib", models.PositiveBigIntegerField(default=0)),
                ("gpus", models.PositiveIntegerField(default=0)),
                ("may_borrow", models.BooleanField(default=True, help_text="Off: never more than the nominal part.")),
                (
                    "resource_group",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="shares", to="quotas.resourcegroup"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="accounts.tenant"
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="tenantshare",
            constraint=models.UniqueConstraint(fields=("resource_group", "tenant"), name="tenant_share_once"),
        ),
    ]
