from django.apps import AppConfig


class ApiConfig(AppConfig):
    """What the dialects share: strict bodies, refusals, answers that are kept for repeated requests."""

    name = "clavier.api.common"
    verbose_name = "API"
    label = "api_native"  # the table was made when the native dialect was the only one
