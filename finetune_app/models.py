"""Fine-tuning tasks. A task has no state of its own: it shows its newest run's."""

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
#: How trials that fall behind are found: never, below the median of the others, by successive halving.
PRUNERS = ("none", "median", "halving")


class FineTuneTask(TenantOwned):
    """What is tuned, on what, with which recipe, method and hyperparameters. Each start is a new run.

    A task of the way ``custom`` runs its owner's code: ``own_code`` says which, and its values stay as they were
    written. Its recipe is ``pretrain`` or empty.
    """

    name = models.CharField(max_length=100)
    # Empty names would all be one: only NULL may stand many times in a unique constraint.
    claimed_name = models.CharField(  # noqa: DJ001
        max_length=100, null=True, editable=False, help_text="The name, where no other task may claim it too."
    )
    description = models.TextField(blank=True)
    create_way = models.CharField(max_length=6, choices=[(way, way) for way in CREATE_WAYS], default="system")
    recipe = models.CharField(max_length=20, blank=True)
    method = models.CharField(max_length=10, blank=True)
    base_version = models.ForeignKey(
        ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="fine_tune_tasks"
    )
    train_dataset = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="fine_tune_tasks"
    )
    validation_dataset = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="validated_tasks"
    )
    reward_version = models.ForeignKey(
        ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="rewarded_tasks"
    )
    image_version = models.ForeignKey(
        ImageVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="fine_tune_tasks"
    )
    tokenizer = models.CharField(
        max_length=5000, blank=True, help_text="Of a new model: private/... or public/... of its creator's files."
    )
    own_code = models.JSONField(default=dict, blank=True, help_text="The fields of runs.own_code.OwnCode.")
    hyperparameters = models.JSONField()
    resources = models.JSONField()
    options = models.JSONField(default=dict, blank=True, help_text="Group, nodes, roles, priority: runs.options.")
    time_limit_s = models.PositiveIntegerField(null=True, blank=True)
    output_model_name = models.CharField(max_length=100)
    estimate = models.JSONField(default=dict, editable=False, help_text="Of the newest run: estimate.Estimate.")
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="+", null=True, help_text="The newest run.")
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )
    config = models.TextField(blank=True, editable=False, help_text="The YAML that it was made from, as written.")

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [models.Index(fields=["tenant", "-created_at"], name="fine_tune_task_list")]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(create_way__in=CREATE_WAYS), name="fine_tune_task_way_known"),
            models.CheckConstraint(
                condition=Q(create_way="custom") | (Q(train_dataset__isnull=False) & ~Q(recipe="") & ~Q(method="")),
                name="fine_tune_task_system_is_whole",
            ),
            models.UniqueConstraint(fields=["tenant", "claimed_name"], name="fine_tune_task_name_once"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_pretrain(self) -> bool:
        """It makes a base model rather than tunes one."""
        return self.recipe == "pretrain"


class TrainingCalibration(models.Model):
    """What finished runs of a recipe and method teach the estimator: logarithms of actual over estimated.

    Models of another size have their own row: what a tiny one takes says little of a large one.
    """

    recipe = models.CharField(max_length=20)
    method = models.CharField(max_length=10)
    on_gpu = models.BooleanField()
    magnitude = models.PositiveSmallIntegerField(default=0, help_text="Of the parameters: 8 for 100 to 999 million.")
    num_runs = models.PositiveIntegerField(default=0)
    memory_log_mean = models.FloatField(default=0.0)
    memory_log_m2 = models.FloatField(default=0.0, help_text="Sum of squared deviations (Welford).")
    seconds_log_mean = models.FloatField(default=0.0)
    seconds_log_m2 = models.FloatField(default=0.0, help_text="Sum of squared deviations (Welford).")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["recipe", "method", "on_gpu", "magnitude"], name="training_calibration_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.recipe} {self.method} of 10^{self.magnitude} parameters after {self.num_runs} runs"


class HyperparameterSearch(TenantOwned):
    """Values of hyperparameters that are tried one trial after the other; each trial is a fine-tuning task."""

    name = models.CharField(max_length=100)
    task = models.JSONField(help_text="What every trial's task takes, ids as texts.")
    space = models.JSONField(help_text="{knob: {low, high, log} or {choices}}")
    metric = models.CharField(max_length=100, default="eval/loss")
    maximize = models.BooleanField(default=False)
    num_trials = models.PositiveIntegerField()
    num_parallel = models.PositiveIntegerField(default=1)
    seed = models.PositiveBigIntegerField(default=42)
    pruner = models.CharField(max_length=10, choices=[(name, name) for name in PRUNERS], default="none")
    pruning_warmup_steps = models.PositiveIntegerField(default=0)
    message = models.TextField(blank=True, help_text="Why it could not go on.")
    stopped_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        verbose_name_plural = "hyperparameter searches"
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="search_name_once")]

    def __str__(self) -> str:
        return self.name

    @property
    def state(self) -> str:
        """RUNNING, STOPPED or COMPLETED."""
        if self.ended_at is None:
            return "RUNNING"
        return "STOPPED" if self.stopped_at is not None else "COMPLETED"


class SearchTrial(models.Model):
    """One set of values, and what came of it. ``value`` None after its end: it failed, or was pruned."""

    search = models.ForeignKey(HyperparameterSearch, on_delete=models.CASCADE, related_name="trials")
    number = models.PositiveIntegerField()
    parameters = models.JSONField()
    task = models.OneToOneField(FineTuneTask, on_delete=models.PROTECT, related_name="search_trial")
    value = models.FloatField(null=True, blank=True)
    message = models.TextField(blank=True)
    curve = models.JSONField(default=list, editable=False, help_text="[[step, value], ...] of the search's metric.")
    pruned_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["number"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["search", "number"], name="search_trial_once")]

    def __str__(self) -> str:
        return f"trial {self.number} of {self.search}"
