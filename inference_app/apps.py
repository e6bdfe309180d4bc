from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Services that answer."""

    name = "inference_app"
    verbose_name = "Serving"
