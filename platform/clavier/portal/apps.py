from django.apps import AppConfig


class PortalConfig(AppConfig):
    """The pages that a tenant's people use."""

    name = "clavier.portal"
