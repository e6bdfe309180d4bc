from __future__ import annotations

from django.contrib import admin

from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.quotas.models import Node, Reservation, ResourceGroup, Usage


@admin.register(ResourceGroup)
class ResourceGroupAdmin(OperatorAdmin):
    list_display = ("name", "description", "created_at")
    search_fields = ("name",)


@admin.register(Node)
class NodeAdmin(OperatorAdmin):
    list_display = ("name", "resource_group", "executor", "is_schedulable", "created_at")
    list_filter = ("resource_group", "executor", "is_schedulable")
    list_select_related = ("resource_group",)
    search_fields = ("name",)


@admin.register(Usage)
class UsageAdmin(OperatorAdmin):
    """Caps are set here; ``used`` is only ever moved by reservations."""

    list_display = ("scope", "scope_id", "resource", "used", "cap")
    list_filter = ("scope", "resource")
    search_fields = ("scope_id",)
    readonly_fields = ("used",)


@admin.register(Reservation)
class ReservationAdmin(ReadOnly, OperatorAdmin):
    list_display = ("attempt_id", "usage", "amount", "created_at", "released_at")
    list_filter = ("usage__resource",)
    search_fields = ("attempt_id",)
    list_select_related = ("usage",)
