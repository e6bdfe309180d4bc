from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from clavier.core.admin import ReadOnly
from clavier.files.models import StorageUsage, StoredFile


@admin.register(StoredFile)
class StoredFileAdmin(ReadOnly, ModelAdmin):
    """Read only: rows and disk change together, through the services."""

    list_display = ("name", "area", "parent", "is_folder", "size_bytes", "tenant", "created_by", "created_at")
    list_filter = ("area", "is_folder")
    search_fields = ("path", "sha256", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")
    show_full_result_count = False


@admin.register(StorageUsage)
class StorageUsageAdmin(ModelAdmin):
    """Limits are set here; what is used moves only with the files."""

    list_display = ("user", "tenant", "bytes_used", "bytes_limit", "inodes_used", "inodes_limit")
    list_filter = ("tenant",)
    search_fields = ("user__username", "tenant__name")
    readonly_fields = ("bytes_used", "inodes_used")
    autocomplete_fields = ("tenant", "user")
    list_select_related = ("tenant", "user")
    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: StorageUsage | None = None) -> bool:
        """The ledger is kept."""
        return False
