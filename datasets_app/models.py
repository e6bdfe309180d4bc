"""Data sets and their immutable versions."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from clavier.core.models import TenantOwned
from clavier.images.models import ImageVersion
from clavier.runs.models import Run
from datasets_app.formats import FORMATS
from datasets_app.labels import DEFAULT_SUBSET
from datasets_app.steps import SPLITS
from datasets_app.validation import KINDS

TASK_KINDS = ("fetch", "plugin", "tokens", "overlap")
#: ``checking``: its run has ended and the gate reads what it left.
TASK_STATES = ("running", "checking", "done", "failed")


class Dataset(TenantOwned):
    """A named series of versions of one body of data."""

    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    languages = models.JSONField(default=list, blank=True)
    tags = models.JSONField(default=list, blank=True)
    license = models.CharField(max_length=100, blank=True)
    task = models.CharField(max_length=100, blank=True, help_text="What the data is for, in its owner's words.")

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        verbose_name = "data set"
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="dataset_name_once")]

    def __str__(self) -> str:
        return self.name


class DatasetVersion(TenantOwned):
    """One uploaded file that passed the gate. Never changed; a fix is a new version."""

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    format = models.CharField(max_length=10, choices=[(name, name) for name in FORMATS])
    file_name = models.CharField(max_length=255, help_text="As it was uploaded.")
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    num_samples = models.BigIntegerField()
    fields = models.JSONField(default=list, help_text="[{name, type, non_null}]")
    kind = models.CharField(max_length=20, choices=[(kind, kind) for kind in KINDS])
    findings = models.JSONField(default=dict, help_text="{errors, warnings, counts, items: first ones with line}")
    statistics = models.JSONField(default=dict, help_text="{row_bytes: {min, mean, max}, labels: {label: rows}}")
    mapping = models.JSONField(default=dict, help_text="{our column: the file's}, for columns that were renamed.")
    split = models.CharField(max_length=10, blank=True, choices=[(name, name) for name in SPLITS])
    subset = models.CharField(
        max_length=100, default=DEFAULT_SUBSET, help_text="Which part of the data set it is, in its owner's words."
    )
    parent = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, blank=True, related_name="derived")
    steps = models.JSONField(default=list, help_text="What was done to the parent's rows to make this version.")
    changes = models.JSONField(default=dict, help_text="{removed: {step: rows}, changed: ..., personal_data: ...}")
    is_usable = models.BooleanField(default=True)
    stored_bytes = models.BigIntegerField(help_text="What its folder was charged with.")
    stored_inodes = models.PositiveIntegerField()

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        verbose_name = "data set version"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["dataset", "number"], name="dataset_version_number_once"),
            models.CheckConstraint(condition=Q(format__in=FORMATS), name="dataset_version_format_known"),
            models.CheckConstraint(condition=Q(kind__in=KINDS), name="dataset_version_kind_known"),
            models.CheckConstraint(condition=Q(num_samples__gt=0), name="dataset_version_not_empty"),
        ]

    def __str__(self) -> str:
        return f"{self.dataset} v{self.number}"


class DataPlugin(TenantOwned):
    """A program of a user that makes data: it runs isolated, and what it leaves passes the gate like any upload."""

    name = models.CharField(max_length=100)
    version = models.CharField(max_length=50)
    plugin_class = models.CharField(max_length=100, blank=True, help_text="What sort of plugin, in its owner's words.")
    provider = models.CharField(max_length=100, blank=True)
    description = models.TextField(blank=True)
    parameters = models.JSONField(default=list, help_text="[{name, type, default, required, choices, help}]")
    own_code = models.JSONField(help_text="Command, code folder, environment: runs/own_code.py.")
    image_version = models.ForeignKey(ImageVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    output_file = models.CharField(max_length=255, help_text="Below the output folder; its ending is the format.")
    may_use_network = models.BooleanField(default=False, help_text="Operators only: its runs reach the network.")

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        verbose_name = "data plugin"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "name", "version"], name="data_plugin_version_once"),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class DataTask(TenantOwned):
    """A run that makes a version (fetch, plugin) or measures one (tokens, overlap)."""

    kind = models.CharField(max_length=10, choices=[(kind, kind) for kind in TASK_KINDS])
    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="tasks")
    version = models.ForeignKey(
        DatasetVersion,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="tasks",
        help_text="What it reads.",
    )
    plugin = models.ForeignKey(DataPlugin, on_delete=models.PROTECT, null=True, blank=True, related_name="tasks")
    made_version = models.ForeignKey(DatasetVersion, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    request = models.JSONField(default=dict, help_text="What was asked for.")
    subject = models.CharField(max_length=64, blank=True, db_index=True, help_text="Of tokens: the model version.")
    run = models.ForeignKey(Run, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    state = models.CharField(
        max_length=10, choices=[(state, state) for state in TASK_STATES], default="running", editable=False
    )
    claimed_at = models.DateTimeField(null=True, editable=False, help_text="Since when the gate reads its file.")
    message = models.TextField(blank=True)
    result = models.JSONField(default=dict)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        verbose_name = "data task"

    def __str__(self) -> str:
        return f"{self.kind} of {self.dataset}"
