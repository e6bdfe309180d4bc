from __future__ import annotations

from django.contrib import admin

from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.images.models import ContainerImage, ImageVersion


@admin.register(ContainerImage)
class ContainerImageAdmin(ReadOnly, OperatorAdmin):
    list_display = ("name", "tenant", "is_public", "created_by", "created_at")
    list_filter = ("is_public",)
    search_fields = ("name", "overview", "tenant__name")
    list_select_related = ("tenant", "created_by")


@admin.register(ImageVersion)
class ImageVersionAdmin(ReadOnly, OperatorAdmin):
    list_display = ("__str__", "tenant", "state", "source", "architecture", "size_bytes", "created_at")
    list_filter = ("state", "source", "architecture")
    search_fields = ("image__name", "tag", "content_id", "tenant__name")
    list_select_related = ("image", "tenant")
