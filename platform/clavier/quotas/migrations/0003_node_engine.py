from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("quotas", "0002_groups_grants_and_limits"),
    ]

    operations = [
        migrations.AddField(
            model_name="node",
            name="assigns_gpus",
            field=models.BooleanField(
                default=False,
                help_text="The executor (a cluster) chooses devices itself: GPUs are counted, not booked by UUID.",
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="engine_network",
            field=models.CharField(
                blank=True, help_text="A network that several engines share. Blank: none.", max_length=100
            ),
        ),
        migrations.AddField(
            model_name="node",
            name="engine_url",
            field=models.CharField(blank=True, help_text="Blank: the executor's default engine.", max_length=200),
        ),
        migrations.AddField(
            model_name="node",
            name="last_seen_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
    ]
