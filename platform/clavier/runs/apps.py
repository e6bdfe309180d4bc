from django.apps import AppConfig


class RunsConfig(AppConfig):
    """The hinge: everything that computes is a Run."""

    name = "clavier.runs"
    verbose_name = "Runs"
