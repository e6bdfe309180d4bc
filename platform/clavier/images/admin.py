from __future__ import annotations

from typing import ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.images.models import ContainerImage, ImageVersion
from clavier.images.services import set_public


@admin.register(ContainerImage)
class ContainerImageAdmin(ReadOnly, OperatorAdmin):
    list_display = ("name", "tenant", "is_public", "created_by", "created_at")
    list_filter = ("is_public",)
    search_fields = ("name", "overview", "tenant__name")
    list_select_related = ("tenant", "created_by")
    readonly_fields = ("tenant", "created_by")
    actions: ClassVar = ["share", "unshare"]

    @admin.action(description="Share with all tenants", permissions=["view"])
    def share(self, request: HttpRequest, queryset: QuerySet[ContainerImage]) -> None:
        """All tenants may use them from now on."""
        for image in queryset:
            set_public(image, True)
        self.message_user(request, f"{len(queryset)} shared", messages.SUCCESS)

    @admin.action(description="Stop sharing", permissions=["view"])
    def unshare(self, request: HttpRequest, queryset: QuerySet[ContainerImage]) -> None:
        """What uses them already keeps them."""
        for image in queryset:
            set_public(image, False)
        self.message_user(request, f"{len(queryset)} no longer shared", messages.SUCCESS)


@admin.register(ImageVersion)
class ImageVersionAdmin(ReadOnly, OperatorAdmin):
    list_display = ("__str__", "tenant", "state", "source", "architecture", "size_bytes", "created_at")
    list_filter = ("state", "source", "architecture")
    search_fields = ("image__name", "tag", "content_id", "tenant__name")
    list_select_related = ("image", "tenant")
