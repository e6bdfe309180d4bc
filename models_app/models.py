"""Models and their immutable versions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from django.conf import settings
from django.db import models

from clavier.core.models import TenantOwned
from clavier.images.models import ImageVersion
from clavier.runs.models import Run
from datasets_app.models import DatasetVersion

SOURCES = ("folder", "path", "huggingface", "modelscope", "fine_tune", "image", "export", "s3")
#: ``image``: no weights of its own; the server in the image brings them. ``gguf``: to be taken away, for llama.cpp.
FORMATS = ("full", "adapter", "image", "gguf")
#: What a version does: continues text and chats, scores replies, names classes, or turns one text into another.
TASKS = ("generation", "reward", "classification", "seq2seq")
VERSION_STATES = ("importing", "ready", "failed")


class ObjectStore(TenantOwned):
    """An S3 server with the key of one account; models are imported from ``name/bucket/prefix``."""

    name = models.CharField(max_length=100)
    endpoint_url = models.CharField(max_length=500)
    region = models.CharField(max_length=100, blank=True)
    access_key = models.CharField(max_length=1000)
    sealed_secret = models.TextField(editable=False, help_text="core.secrets.seal")

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="object_store_once")]

    def __str__(self) -> str:
        return self.name


class RegisteredModel(TenantOwned):
    """A named model; what can be tuned, judged and served are its versions."""

    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    license = models.CharField(max_length=100, blank=True)
    tags = models.JSONField(default=list, blank=True)
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="model_name_once")]

    def __str__(self) -> str:
        return self.name


class ModelVersion(TenantOwned):
    """One set of weights with its tokenizer: a full model, or an adapter on ``base_version``."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=[(s, s) for s in VERSION_STATES], default="importing")
    message = models.TextField(blank=True, help_text="Why the import failed.")
    source = models.CharField(max_length=12, choices=[(s, s) for s in SOURCES])
    location = models.CharField(max_length=1000, blank=True, help_text="Where it came from: path or hub id.")
    revision = models.CharField(max_length=100, blank=True)
    folder = models.CharField(max_length=1000, blank=True, help_text="Below CLAVIER_HOME, or absolute when in place.")

    format = models.CharField(max_length=10, choices=[(f, f) for f in FORMATS], default="full")
    task = models.CharField(max_length=20, choices=[(t, t) for t in TASKS], default="generation")
    base_version = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="derived_versions"
    )
    shares_files_with = models.ForeignKey(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="sharing_versions",
        help_text="The version in whose folder the files lie.",
    )  # fmt: skip
    image_version = models.ForeignKey(
        ImageVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="model_versions"
    )
    dataset_version = models.ForeignKey(
        DatasetVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="model_versions"
    )
    run = models.OneToOneField(Run, on_delete=models.PROTECT, null=True, blank=True, related_name="model_version")

    architecture = models.CharField(max_length=100, blank=True)
    num_parameters = models.BigIntegerField(null=True, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    fingerprint = models.CharField(max_length=64, blank=True, help_text="sha256 over the weights and tokenizer.")
    render_hash = models.CharField(max_length=64, blank=True, help_text="Hash of template, special tokens, stops.")
    facts = models.JSONField(default=dict, blank=True)
    metrics = models.JSONField(default=dict, blank=True)
    declarations = models.JSONField(default=list, blank=True, help_text="What may be set: models_app.declarations.")
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "number"], name="model_version_once")]

    def __str__(self) -> str:
        return f"{self.model.name}@{self.number}"

    @property
    def path(self) -> Path:
        """Where the version's files lie. Raises ValueError for an image, which has none."""
        if not self.folder:
            raise ValueError(f"{self} has no files")
        return Path(settings.CLAVIER_HOME) / self.folder

    @property
    def is_usable(self) -> bool:
        """Can be tuned, judged and served."""
        return self.state == "ready"
