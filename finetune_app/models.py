"""Fine-tuning tasks. A task has no state of its own: it shows its newest run's."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from clavier.core.models import TenantOwned
from clavier.runs.models import Run
from datasets_app.models import DatasetVersion
from models_app.models import ModelVersion


class FineTuneTask(TenantOwned):
    """What is tuned, on what, with which recipe, method and hyperparameters. Each start is a new run."""

    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    recipe = models.CharField(max_length=20)
    method = models.CharField(max_length=10)
    base_version = models.ForeignKey(
        ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="fine_tune_tasks"
    )
    train_dataset = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="fine_tune_tasks")
    validation_dataset = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="validated_tasks"
    )
    hyperparameters = models.JSONField()
    resources = models.JSONField()
    time_limit_s = models.PositiveIntegerField(null=True, blank=True)
    output_model_name = models.CharField(max_length=100)
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="+", null=True, help_text="The newest run.")

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [models.Index(fields=["tenant", "-created_at"], name="fine_tune_task_list")]

    def __str__(self) -> str:
        return self.name
