import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import clavier.quotas.models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0001_initial"),
        ("quotas", "0001_initial"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name="resourcegroup",
            name="default_resources",
            field=models.JSONField(
                blank=True,
                default=dict,
                help_text="What one container gets that asks for nothing.",
                validators=[clavier.quotas.models.check_amounts],
            ),
        ),
        migrations.AddField(
            model_name="resourcegroup",
            name="is_active",
            field=models.BooleanField(default=True, help_text="Off: runs go on, no new run is accepted."),
        ),
        migrations.AddField(
            model_name="resourcegroup",
            name="is_open",
            field=models.BooleanField(default=True, help_text="Everyone may use it. Off: only those with a grant."),
        ),
        migrations.AddField(
            model_name="resourcegroup",
            name="run_limits",
            field=models.JSONField(
                blank=True,
                default=dict,
                help_text="The most that one container may ask for.",
                validators=[clavier.quotas.models.check_amounts],
            ),
        ),
        migrations.CreateModel(
            name="ResourceGroupGrant",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "resource_group",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="grants", to="quotas.resourcegroup"
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="accounts.tenant",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="resourcegroupgrant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("tenant", None), ("user__isnull", False)),
                    models.Q(("tenant__isnull", False), ("user", None)),
                    _connector="OR",
                ),
                name="grant_to_a_tenant_or_a_user",
            ),
        ),
        migrations.AddConstraint(
            model_name="resourcegroupgrant",
            constraint=models.UniqueConstraint(
                condition=models.Q(("user", None)), fields=("resource_group", "tenant"), name="grant_to_tenant_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="resourcegroupgrant",
            constraint=models.UniqueConstraint(
                condition=models.Q(("tenant", None)), fields=("resource_group", "user"), name="grant_to_user_once"
            ),
        ),
    ]
