from django.apps import AppConfig


class NativeApiConfig(AppConfig):
    """Our own REST API, below /api/v1."""

    name = "clavier.api.native"
    label = "api_native"
