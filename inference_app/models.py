"""Services, their versions and the replicas that answer."""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q

from clavier.core.models import TenantOwned
from clavier.images.models import ImageVersion
from clavier.runs.models import Run
from models_app.models import ModelVersion

DESIRED_STATES = ("draft", "running", "stopped")
REQUEST_METHODS = ("rest", "grpc")
#: What the number of replicas is to follow.
SCALE_ON = ("requests_per_second", "concurrency", "gpu_utilization")
service_name_validator = RegexValidator(
    r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z",
    "Lower-case letters, digits and '-' (1 to 63), a letter or digit first and last.",
)


class InferenceService(TenantOwned):
    """A name under which programs ask; ``model`` of an OpenAI request."""

    name = models.CharField(max_length=63, validators=[service_name_validator])
    description = models.TextField(blank=True)
    desired_state = models.CharField(max_length=10, choices=[(s, s) for s in DESIRED_STATES], default="draft")
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="service_name_once")]

    def __str__(self) -> str:
        return self.name


class ServiceVersion(models.Model):
    """One model version behind a service, with its share of the traffic and what each replica gets.

    With ``own_code`` (or an image) its owner's own server answers; ``model_version`` may then be missing.
    """

    service = models.ForeignKey(InferenceService, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    model_version = models.ForeignKey(
        ModelVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="service_versions"
    )
    image_version = models.ForeignKey(
        ImageVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="service_versions"
    )
    own_code = models.JSONField(default=dict, blank=True, help_text="The fields of runs.own_code.OwnCode.")
    image_ports = models.JSONField(
        default=list, blank=True, help_text="Where the own server listens; the first answers."
    )
    volumes = models.JSONField(default=list, blank=True, help_text="[{src: folder of the files, dst: path inside}]")
    volume_path = models.CharField(max_length=5000, blank=True, help_text="A folder of the files to read in place.")
    request_method = models.CharField(max_length=4, choices=[(m, m) for m in REQUEST_METHODS], default="rest")
    hyperparameters = models.JSONField(default=dict, blank=True)
    options = models.JSONField(default=dict, blank=True, help_text="Group, nodes, priority: runs.options.")
    min_replicas = models.PositiveIntegerField(default=1)
    max_replicas = models.PositiveIntegerField(default=1)
    scale_on = models.CharField(max_length=20, choices=[(s, s) for s in SCALE_ON], default="requests_per_second")
    scale_threshold = models.PositiveIntegerField(default=100)
    traffic_percent = models.PositiveIntegerField(default=100)
    num_replicas = models.PositiveIntegerField(default=1)
    context_tokens = models.PositiveIntegerField(default=2048)
    parallel = models.PositiveIntegerField(default=4, help_text="Requests that a replica answers at once.")
    resources = models.JSONField()
    submitted = models.JSONField(
        default=dict, editable=False, help_text="The request as its client wrote it, secrets left out."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["service", "number"], name="service_version_once"),
            models.CheckConstraint(condition=Q(traffic_percent__lte=100), name="service_version_traffic"),
            models.CheckConstraint(condition=Q(num_replicas__gte=1), name="service_version_replicas"),
            models.CheckConstraint(condition=Q(max_replicas__gte=F("min_replicas")), name="service_version_scale"),
            models.CheckConstraint(
                condition=Q(model_version__isnull=False) | ~Q(own_code={}) | Q(image_version__isnull=False),
                name="service_version_serves_something",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.service.name}@{self.number}"

    @property
    def is_own_server(self) -> bool:
        """Its owner's program answers, not one of the platform's servers."""
        return bool(self.own_code.get("command") or self.image_version_id)


class Replica(models.Model):
    """One server of a service version. Its newest run serves, or is being started again."""

    service_version = models.ForeignKey(ServiceVersion, on_delete=models.CASCADE, related_name="replicas")
    index = models.PositiveIntegerField()
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="+", null=True)
    restarts = models.PositiveIntegerField(default=0, help_text="Ends in a row that nobody asked for.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["service_version", "index"], name="replica_once"),
        ]

    def __str__(self) -> str:
        return f"{self.service_version} replica {self.index}"
