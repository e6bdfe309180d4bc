from django.apps import AppConfig


class NativeApiConfig(AppConfig):
    """Our own REST API, below /api/v1."""

    name = "clavier.api.native"
    verbose_name = "API"
    label = "api_native"
