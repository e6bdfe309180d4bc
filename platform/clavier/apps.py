"""The package itself is an app, for its management commands and system checks."""

from django.apps import AppConfig


class ClavierConfig(AppConfig):
    """Registers the checks that run before every start."""

    name = "clavier"

    def ready(self) -> None:
        """Import the checks; importing registers them."""
        from clavier.config import checks  # noqa: F401  (apps must be loaded first)
