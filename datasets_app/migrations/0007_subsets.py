from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("datasets_app", "0006_data_tasks"),
    ]

    operations = [
        migrations.AddField(
            model_name="datasetversion",
            name="subset",
            field=models.CharField(
                default="Default", help_text="Which part of the data set it is, in its owner's words.", max_length=100
            ),
        ),
    ]
