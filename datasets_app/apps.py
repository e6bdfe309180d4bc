from django.apps import AppConfig


class DatasetsConfig(AppConfig):
    """Data sets, their versions, and the gate in front of them."""

    name = "datasets_app"
    verbose_name = "Datasets"
