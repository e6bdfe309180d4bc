from django.apps import AppConfig


class WorkerConfig(AppConfig):
    """The runner: scheduler, reconciler and the jobs of the queue. It sees runs only."""

    name = "runner.worker"
    label = "runner_worker"
