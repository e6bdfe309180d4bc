from django.apps import AppConfig


class LegacyApiConfig(AppConfig):
    """The platform API of document 001; no tables."""

    name = "clavier.api.legacy"
    verbose_name = "Platform API"
    label = "api_legacy"
