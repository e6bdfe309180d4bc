from django.apps import AppConfig


class EvaluationConfig(AppConfig):
    """Evaluations and their scores."""

    name = "evaluation_app"
    verbose_name = "Evaluation"
