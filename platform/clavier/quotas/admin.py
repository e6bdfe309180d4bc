from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import TabularInline

from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.quotas.forms import QuotaWindowForm, UsageForm
from clavier.quotas.models import (
    Gpu,
    GpuBooking,
    Node,
    QuotaWindow,
    Reservation,
    ResourceGroup,
    ResourceGroupGrant,
    TenantShare,
    Usage,
)
from clavier.quotas.queries import with_owner_names
from clavier.quotas.services import count_devices


class GrantInline(TabularInline):
    model = ResourceGroupGrant
    extra = 0
    autocomplete_fields = ("tenant", "user")


class ShareInline(TabularInline):
    model = TenantShare
    extra = 0
    autocomplete_fields = ("tenant",)


@admin.register(ResourceGroup)
class ResourceGroupAdmin(OperatorAdmin):
    list_display = ("name", "description", "is_active", "is_open", "created_at")
    list_filter = ("is_active", "is_open")
    search_fields = ("name",)
    inlines = (GrantInline, ShareInline)


@admin.register(ResourceGroupGrant)
class ResourceGroupGrantAdmin(OperatorAdmin):
    list_display = ("resource_group", "tenant", "user", "created_at")
    list_filter = ("resource_group",)
    search_fields = ("resource_group__name", "tenant__name", "user__username")
    autocomplete_fields = ("resource_group", "tenant", "user")
    list_select_related = ("resource_group", "tenant", "user")


@admin.register(TenantShare)
class TenantShareAdmin(OperatorAdmin):
    list_display = ("resource_group", "tenant", "cpu_milli", "memory_mib", "gpus", "may_borrow")
    list_filter = ("resource_group", "may_borrow")
    search_fields = ("resource_group__name", "tenant__name")
    autocomplete_fields = ("resource_group", "tenant")
    list_select_related = ("resource_group", "tenant")


@admin.register(Node)
class NodeAdmin(OperatorAdmin):
    list_display = ("name", "resource_group", "executor", "engine_url", "is_schedulable", "last_seen_at")
    list_filter = ("resource_group", "executor", "is_schedulable")
    list_select_related = ("resource_group",)
    search_fields = ("name",)
    readonly_fields = ("last_seen_at",)

    def save_model(self, request: HttpRequest, obj: Node, form: Any, change: bool) -> None:
        """A node without devices has the cap of none, not no cap."""
        super().save_model(request, obj, form, change)
        count_devices(obj)


@admin.register(Gpu)
class GpuAdmin(OperatorAdmin):
    """Devices are declared by ``manage.py gpus`` or the API, which also count them; what is used moves with runs."""

    list_display = ("uuid", "node", "index", "name", "mig_profile", "memory_mib", "cores_used", "memory_used_mib",
                    "allows_sharing", "is_healthy")  # fmt: skip
    list_filter = ("node", "mig_profile", "allows_sharing", "is_healthy")
    search_fields = ("uuid", "name", "node__name")
    list_select_related = ("node",)
    readonly_fields = ("uuid", "node", "index", "name", "memory_mib", "mig_profile", "parent_uuid", "is_present",
                       "cores_used", "memory_used_mib")  # fmt: skip

    def save_model(self, request: HttpRequest, obj: Gpu, form: Any, change: bool) -> None:
        """A device that was switched off is no longer counted."""
        super().save_model(request, obj, form, change)
        count_devices(obj.node)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A device is declared, which keeps the node's caps right."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Gpu | None = None) -> bool:
        """A device is forgotten by the service, which keeps the node's caps right."""
        return False


@admin.register(GpuBooking)
class GpuBookingAdmin(ReadOnly, OperatorAdmin):
    list_display = ("attempt_id", "rank", "gpu", "is_whole", "cores_percent", "memory_mib", "created_at", "released_at")
    list_filter = ("is_whole",)
    search_fields = ("attempt_id", "gpu__uuid")
    list_select_related = ("gpu",)


class OwnerNamed(OperatorAdmin):
    """Rows of a tenant, user or node, shown by its name and not by its id."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """With the owner's name, in one query."""
        return with_owner_names(super().get_queryset(request))

    @admin.display(description="Owner", ordering="owner_name")
    def owner(self, row: Any) -> str:
        """The name of the tenant, user or node."""
        return row.owner_name or str(row.scope_id)


@admin.register(Usage)
class UsageAdmin(OwnerNamed):
    """Caps are set here; ``used`` is only ever moved by reservations."""

    form = UsageForm
    list_display = ("scope", "owner", "resource", "used", "cap")
    list_filter = ("scope", "resource")
    search_fields = ("scope_id", "owner_name")
    readonly_fields = ("used",)


@admin.register(QuotaWindow)
class QuotaWindowAdmin(OwnerNamed):
    form = QuotaWindowForm
    list_display = ("scope", "owner", "valid_from", "valid_until")
    list_filter = ("scope",)
    search_fields = ("scope_id", "owner_name")


@admin.register(Reservation)
class ReservationAdmin(ReadOnly, OperatorAdmin):
    list_display = ("attempt_id", "usage", "amount", "created_at", "released_at")
    list_filter = ("usage__resource",)
    search_fields = ("attempt_id",)
    list_select_related = ("usage",)
