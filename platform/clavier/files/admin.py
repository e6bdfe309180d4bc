from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.files.models import ResumableUpload, StorageUsage, StoredFile, TenantStorage


@admin.register(StoredFile)
class StoredFileAdmin(ReadOnly, OperatorAdmin):
    """Read only: rows and disk change together, through the services."""

    list_display = ("name", "area", "parent", "is_folder", "size_bytes", "tenant", "created_by", "created_at")
    list_filter = ("area", "is_folder")
    search_fields = ("path", "sha256", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")


@admin.register(ResumableUpload)
class ResumableUploadAdmin(ReadOnly, OperatorAdmin):
    """Read only: its rows, its bytes and what they are charged change together, through the services."""

    list_display = ("path", "area", "received_bytes", "size_bytes", "tenant", "created_by", "created_at", "expires_at")
    list_filter = ("area",)
    search_fields = ("path", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")


@admin.register(StorageUsage)
class StorageUsageAdmin(OperatorAdmin):
    """Limits are set here; what is used moves only with the files."""

    list_display = ("user", "tenant", "bytes_used", "bytes_limit", "inodes_used", "inodes_limit")
    list_filter = ("tenant",)
    search_fields = ("user__username", "tenant__name")
    readonly_fields = ("bytes_used", "inodes_used")
    autocomplete_fields = ("tenant", "user")
    list_select_related = ("tenant", "user")

    def has_delete_permission(self, request: HttpRequest, obj: StorageUsage | None = None) -> bool:
        """The ledger is kept."""
        return False


@admin.register(TenantStorage)
class TenantStorageAdmin(OperatorAdmin):
    """Limits are set here; what is used moves only with the files."""

    list_display = ("tenant", "bytes_used", "bytes_limit", "inodes_used", "inodes_limit")
    search_fields = ("tenant__name",)
    readonly_fields = ("bytes_used", "inodes_used")
    autocomplete_fields = ("tenant",)
    list_select_related = ("tenant",)

    def has_delete_permission(self, request: HttpRequest, obj: TenantStorage | None = None) -> bool:
        """The ledger is kept."""
        return False
