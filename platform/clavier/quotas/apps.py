from django.apps import AppConfig


class QuotasConfig(AppConfig):
    """What may be used, what is used, and by which attempt."""

    name = "clavier.quotas"
    verbose_name = "Quotas"
