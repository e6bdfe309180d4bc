from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from clavier.core.admin import OperatorAdmin, ReadOnly
from datasets_app.models import Dataset, DatasetVersion


@admin.register(Dataset)
class DatasetAdmin(OperatorAdmin):
    list_display = ("name", "tenant", "created_by", "task", "license", "created_at")
    search_fields = ("name", "description", "tenant__name", "created_by__username")
    readonly_fields = ("tenant", "created_by", "created_at", "updated_at")
    list_select_related = ("tenant", "created_by")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A data set belongs to the actor who creates it."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Dataset | None = None) -> bool:
        """Its files would stay."""
        return False


@admin.register(DatasetVersion)
class DatasetVersionAdmin(ReadOnly, OperatorAdmin):
    """A version never changes."""

    """Read only: a version never changes."""

    list_display = (
        *("dataset", "number", "kind", "format", "num_samples", "size_bytes"),
        *("is_usable", "tenant", "created_by", "created_at"),
    )
    list_filter = ("kind", "format", "is_usable")
    search_fields = ("dataset__name", "file_name", "sha256", "tenant__name", "created_by__username")
    list_select_related = ("dataset", "tenant", "created_by")
