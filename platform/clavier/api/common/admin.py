from __future__ import annotations

from django.contrib import admin

from clavier.api.common.models import IdempotentRequest
from clavier.core.admin import OperatorAdmin, ReadOnly


@admin.register(IdempotentRequest)
class IdempotentRequestAdmin(ReadOnly, OperatorAdmin):
    """What was answered to creates that carried a key; rows go after a day."""

    list_display = ("created_at", "route", "key", "status", "tenant", "user")
    list_filter = ("status",)
    search_fields = ("key", "route", "tenant__name", "user__username")
    list_select_related = ("tenant", "user")
