"""Evaluations and their scores; per-sample results stay in the run's folder."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from clavier.core.models import TenantOwned
from clavier.runs.models import Run
from datasets_app.models import DatasetVersion
from models_app.models import ModelVersion


class EvaluationTask(TenantOwned):
    """A model version judged on question/reference pairs, beside its base where it has one."""

    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="evaluation_tasks")
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="evaluation_tasks")
    metrics = models.JSONField()
    decoding = models.JSONField()
    limit = models.PositiveIntegerField(null=True, blank=True, help_text="How many questions; empty: all.")
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="+", null=True, help_text="The newest run.")
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )
    fingerprint = models.CharField(max_length=64, blank=True, help_text="Only equal fingerprints may be ranked.")

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return self.name


class Score(models.Model):
    """One metric of one candidate, with its 95 % bootstrap interval."""

    evaluation = models.ForeignKey(EvaluationTask, on_delete=models.CASCADE, related_name="scores")
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="scores")
    label = models.CharField(max_length=20)
    metric = models.CharField(max_length=40)
    value = models.FloatField()
    low = models.FloatField(null=True)
    high = models.FloatField(null=True)
    num_samples = models.PositiveIntegerField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["evaluation", "label", "metric"], name="score_once"),
        ]

    def __str__(self) -> str:
        return f"{self.label} {self.metric} = {self.value:.4f}"
