"""Container images and their versions; the archives lie in the store, engines are caches of it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q

from clavier.core.models import TenantOwned
from clavier.runs.models import Run

SOURCES = ("tar", "registry")
STATES = ("importing", "ready", "failed")


class ContainerImage(TenantOwned):
    """A named image; what runs use are its versions, one for each tag."""

    name = models.CharField(max_length=200, help_text="Lower case, in parts: dzq/45")
    icon = models.CharField(max_length=200, blank=True)
    overview = models.CharField(max_length=500, blank=True)
    description = models.TextField(blank=True)
    labels = models.JSONField(default=list, blank=True)
    is_public = models.BooleanField(default=False, help_text="Shared with all tenants by an operator.")
    first_shared_at = models.DateTimeField(null=True, blank=True, editable=False)

    #: Rows of other tenants may refer to images of which this column is not null.
    shared_since: ClassVar = "first_shared_at"

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["tenant", "name"], name="image_name_once")]

    def __str__(self) -> str:
        return self.name


class ImageVersion(TenantOwned):
    """What one tag of an image stands for; the content is named by ``content_id`` and never changes."""

    shared_since: ClassVar = "image__first_shared_at"

    image = models.ForeignKey(ContainerImage, on_delete=models.CASCADE, related_name="versions")
    tag = models.CharField(max_length=128)
    state = models.CharField(max_length=10, choices=[(state, state) for state in STATES], default="importing")
    message = models.TextField(blank=True, help_text="Why the import failed.")
    error = models.CharField(max_length=60, blank=True, help_text="The same as a machine word.")
    source = models.CharField(max_length=10, choices=[(source, source) for source in SOURCES])
    location = models.CharField(max_length=4200, blank=True, help_text="The file, or the reference on the registry.")
    run = models.OneToOneField(Run, on_delete=models.PROTECT, null=True, blank=True, related_name="image_version")

    content_id = models.CharField(max_length=71, blank=True, db_index=True, help_text="sha256 of the configuration.")
    digest = models.CharField(max_length=71, blank=True, help_text="sha256 of the registry's manifest.")
    size_bytes = models.BigIntegerField(default=0, help_text="Of the archive; charged to its creator.")
    architecture = models.CharField(max_length=40, blank=True)
    os = models.CharField(max_length=40, blank=True)
    user = models.CharField(
        max_length=200, blank=True, help_text="What the image asks for; the platform gives its own."
    )
    entrypoint = models.JSONField(default=list, blank=True)
    cmd = models.JSONField(default=list, blank=True)
    env_names = models.JSONField(default=list, blank=True)
    exposed_ports = models.JSONField(default=list, blank=True)
    layers = models.JSONField(default=list, blank=True, help_text="diff_id and size_bytes of each.")
    warnings = models.JSONField(default=list, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["image", "tag"], name="image_tag_once"),
            models.CheckConstraint(
                condition=~Q(state="ready") | Q(content_id__startswith="sha256:"), name="image_ready_has_id"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.image.name}:{self.tag}"

    @property
    def archive(self) -> Path:
        """The archive in the store, which an engine loads where it lacks the image."""
        return Path(settings.CLAVIER_IMAGES) / archive_name(self.content_id)

    @property
    def is_usable(self) -> bool:
        """Runs can be started with it."""
        return self.state == "ready"


def archive_name(image_id: str) -> str:
    """What the archive of an image id (``sha256:...``) is called in the store."""
    return f"{image_id.removeprefix('sha256:')}.tar"
