from django.apps import AppConfig


class ModelsConfig(AppConfig):
    """Registered models, their versions and lineage."""

    name = "models_app"
    verbose_name = "Models"
