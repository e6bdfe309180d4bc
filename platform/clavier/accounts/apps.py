from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Tenants, users, memberships, API keys."""

    name = "clavier.accounts"
    verbose_name = "Accounts"
