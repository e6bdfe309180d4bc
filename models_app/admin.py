from __future__ import annotations

from django.contrib import admin
from unfold.admin import ModelAdmin

from clavier.core.admin import ReadOnly
from models_app.models import ModelVersion, RegisteredModel


@admin.register(RegisteredModel)
class RegisteredModelAdmin(ReadOnly, ModelAdmin):
    list_display = ("name", "tenant", "created_by", "license", "created_at")
    list_filter = ("license",)
    search_fields = ("name", "description", "tenant__name")
    list_select_related = ("tenant", "created_by")
    readonly_fields = ("tenant", "created_by")
    show_full_result_count = False


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnly, ModelAdmin):
    list_display = ("__str__", "tenant", "state", "source", "format", "num_parameters", "size_bytes", "created_at")
    list_filter = ("state", "source", "format")
    search_fields = ("model__name", "location", "fingerprint", "tenant__name")
    list_select_related = ("model", "tenant")
    show_full_result_count = False
