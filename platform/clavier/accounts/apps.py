from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Tenants, users, memberships, API keys."""

    name = "clavier.accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        """Register how the OpenAPI document names the credentials."""
        from clavier.accounts import schema  # noqa: F401  (apps must be loaded first)
