"""Evaluations and their scores; per-sample results stay in the run's folder."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from clavier.core.models import TenantOwned
from clavier.images.models import ImageVersion
from clavier.runs.models import Run
from datasets_app.models import DatasetVersion
from models_app.models import ModelVersion

CREATE_WAYS = ("system", "custom")


class EvaluationTask(TenantOwned):
    """A model version judged on question/reference pairs, beside its base where it has one.

    Of the way ``custom`` it is its owner's own program, and ``results`` is what was found in its output folder.
    """

    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    create_way = models.CharField(max_length=6, choices=[(way, way) for way in CREATE_WAYS], default="system")
    model_version = models.ForeignKey(
        ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="evaluation_tasks"
    )
    dataset_version = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="evaluation_tasks"
    )
    metrics = models.JSONField(default=list, blank=True)
    decoding = models.JSONField(default=dict, blank=True)
    image_version = models.ForeignKey(
        ImageVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="evaluation_tasks"
    )
    own_code = models.JSONField(default=dict, blank=True, help_text="The fields of runs.own_code.OwnCode.")
    resources = models.JSONField(default=dict, blank=True)
    options = models.JSONField(default=dict, blank=True, help_text="Group, nodes, roles, priority: runs.options.")
    time_limit_s = models.PositiveIntegerField(null=True, blank=True)
    results = models.JSONField(default=dict, blank=True, help_text="Of own code: evaluation_app.results.")
    limit = models.PositiveIntegerField(null=True, blank=True, help_text="How many questions; empty: all.")
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="+", null=True, help_text="The newest run.")
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )
    fingerprint = models.CharField(max_length=64, blank=True, help_text="Only equal fingerprints may be ranked.")

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(create_way__in=CREATE_WAYS), name="evaluation_way_known"),
            models.CheckConstraint(
                condition=Q(create_way="custom") | Q(model_version__isnull=False, dataset_version__isnull=False),
                name="evaluation_system_is_whole",
            ),
        ]

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
