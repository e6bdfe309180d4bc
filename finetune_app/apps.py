from django.apps import AppConfig


class FineTuneConfig(AppConfig):
    """Fine-tuning tasks."""

    name = "finetune_app"
    verbose_name = "Fine-tuning"
