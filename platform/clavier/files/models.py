"""The files of users, and how much storage each user has in use."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from clavier.core.models import TenantOwned

AREAS = ("private", "public")
MIB = 2**20
MAX_METADATA_CHARACTERS = 8192


def default_bytes_limit() -> int:
    """Bytes that a new user may store."""
    return int(settings.DEFAULT_STORAGE_MIB) * MIB


def default_inodes_limit() -> int:
    """Files and folders that a new user may store."""
    return int(settings.DEFAULT_STORAGE_INODES)


class StoredFile(TenantOwned):
    """A file or folder of its creator; the bytes lie under CLAVIER_FILES/tenant/user/area/path."""

    area = models.CharField(max_length=7, choices=[(area, area) for area in AREAS])
    path = models.CharField(max_length=4096, help_text="Relative to the area, in NFC: a/b/c.txt")
    parent = models.CharField(max_length=4096, blank=True, help_text="The folder's path; empty at the top.")
    name = models.CharField(max_length=255)
    is_folder = models.BooleanField(default=False)
    size_bytes = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    modified_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        verbose_name = "file"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "created_by", "area", "path"], name="stored_file_once"),
            models.CheckConstraint(condition=Q(area__in=AREAS), name="stored_file_area_known"),
            models.CheckConstraint(condition=Q(size_bytes__gte=0), name="stored_file_size_not_negative"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["tenant", "created_by", "area", "parent", "-created_at"], name="stored_file_folder")
        ]

    def __str__(self) -> str:
        return f"{self.area}/{self.path}"


class ResumableUpload(TenantOwned):
    """A file that its creator is sending in parts; it counts against the storage quota with its whole length."""

    area = models.CharField(max_length=7, choices=[(area, area) for area in AREAS])
    path = models.CharField(max_length=4096, help_text="Where the file goes, relative to the area.")
    overwrite = models.BooleanField(default=False)
    size_bytes = models.BigIntegerField(help_text="Of the whole file.")
    received_bytes = models.BigIntegerField(default=0, help_text="Are durable.")
    sha256 = models.CharField(max_length=64, blank=True, help_text="That the file shall have; empty: not told.")
    metadata = models.CharField(max_length=MAX_METADATA_CHARACTERS, blank=True, help_text="As the client sent it.")
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(area__in=AREAS), name="resumable_upload_area_known"),
            models.CheckConstraint(
                condition=Q(received_bytes__gte=0, received_bytes__lte=F("size_bytes")),
                name="resumable_upload_in_bounds",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.area}/{self.path}: {self.received_bytes}/{self.size_bytes} bytes"


class StorageUsage(models.Model):
    """What a user's files and data sets in one tenant take up, and what they may."""

    tenant = models.ForeignKey("accounts.Tenant", on_delete=models.CASCADE, related_name="+")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    bytes_used = models.BigIntegerField(default=0, editable=False)
    bytes_limit = models.BigIntegerField(default=default_bytes_limit)
    inodes_used = models.BigIntegerField(default=0, editable=False)
    inodes_limit = models.BigIntegerField(default=default_inodes_limit)

    class Meta:
        verbose_name_plural = "storage usage"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "user"], name="storage_usage_once"),
            models.CheckConstraint(condition=Q(bytes_used__gte=0), name="storage_bytes_not_negative"),
            models.CheckConstraint(condition=Q(inodes_used__gte=0), name="storage_inodes_not_negative"),
            models.CheckConstraint(
                condition=Q(bytes_limit__gte=0, inodes_limit__gte=0), name="storage_limits_not_negative"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}: {self.bytes_used}/{self.bytes_limit} bytes, {self.inodes_used}/{self.inodes_limit}"


class TenantStorage(models.Model):
    """What all users of a tenant store together, and what they may. No limit: blank."""

    tenant = models.OneToOneField("accounts.Tenant", on_delete=models.CASCADE, related_name="+")
    bytes_used = models.BigIntegerField(default=0, editable=False)
    bytes_limit = models.BigIntegerField(null=True, blank=True)
    inodes_used = models.BigIntegerField(default=0, editable=False)
    inodes_limit = models.BigIntegerField(null=True, blank=True, help_text="Files and folders.")

    class Meta:
        verbose_name_plural = "tenant storage"
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(bytes_used__gte=0, inodes_used__gte=0), name="tenant_storage_not_negative"
            ),
            models.CheckConstraint(
                condition=(Q(bytes_limit=None) | Q(bytes_limit__gte=0))
                & (Q(inodes_limit=None) | Q(inodes_limit__gte=0)),
                name="tenant_storage_limits_not_negative",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tenant_id}: {self.bytes_used}/{self.bytes_limit} bytes, {self.inodes_used}/{self.inodes_limit}"
