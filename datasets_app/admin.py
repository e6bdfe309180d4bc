from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from clavier.core.admin import OperatorAdmin, ReadOnly
from datasets_app.models import DataPlugin, Dataset, DatasetVersion, DataTask


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
    """Read only: a version never changes."""

    list_display = (
        *("dataset", "number", "split", "subset", "kind", "format", "num_samples", "size_bytes"),
        *("is_usable", "tenant", "created_by", "created_at"),
    )
    list_filter = ("kind", "format", "split", "is_usable")
    search_fields = ("dataset__name", "file_name", "sha256", "tenant__name", "created_by__username")
    list_select_related = ("dataset", "tenant", "created_by")


@admin.register(DataPlugin)
class DataPluginAdmin(OperatorAdmin):
    """Operators say which plugins reach the network; everything else is their owners' affair."""

    list_display = ("name", "version", "plugin_class", "provider", "may_use_network", "tenant", "created_by")
    list_filter = ("may_use_network",)
    search_fields = ("name", "provider", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")
    fields = (
        *("name", "version", "plugin_class", "provider", "description", "parameters", "own_code", "image_version"),
        *("output_file", "may_use_network", "tenant", "created_by", "created_at"),
    )
    readonly_fields = tuple(name for name in fields if name != "may_use_network")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A plugin belongs to the actor who registers it."""
        return False


@admin.register(DataTask)
class DataTaskAdmin(ReadOnly, OperatorAdmin):
    """Read only: what a run made or measured."""

    list_display = ("kind", "state", "dataset", "version", "made_version", "tenant", "created_by", "created_at")
    list_filter = ("kind", "state")
    search_fields = ("dataset__name", "message", "tenant__name", "created_by__username")
    list_select_related = ("dataset", "version__dataset", "made_version__dataset", "tenant", "created_by")
