from __future__ import annotations

from django.contrib import admin

from clavier.core.admin import OperatorAdmin, ReadOnly
from models_app.models import ModelVersion, ObjectStore, RegisteredModel


@admin.register(RegisteredModel)
class RegisteredModelAdmin(ReadOnly, OperatorAdmin):
    list_display = ("name", "tenant", "created_by", "license", "created_at")
    list_filter = ("license",)
    search_fields = ("name", "description", "tenant__name")
    list_select_related = ("tenant", "created_by")
    readonly_fields = ("tenant", "created_by")


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnly, OperatorAdmin):
    list_display = ("__str__", "tenant", "state", "source", "format", "num_parameters", "size_bytes", "created_at")
    list_filter = ("state", "source", "format")
    search_fields = ("model__name", "location", "fingerprint", "tenant__name")
    list_select_related = ("model", "tenant")


@admin.register(ObjectStore)
class ObjectStoreAdmin(ReadOnly, OperatorAdmin):
    """Whose accounts there are; their secrets are never shown."""

    list_display = ("name", "tenant", "endpoint_url", "region", "created_by", "created_at")
    search_fields = ("name", "endpoint_url", "tenant__name")
    list_select_related = ("tenant", "created_by")
    fields = ("name", "tenant", "endpoint_url", "region", "created_by")
