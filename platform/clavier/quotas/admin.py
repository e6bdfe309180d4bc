from __future__ import annotations

from typing import Any

from django import forms
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
from clavier.quotas.services import count_devices, is_in_use, set_cap


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

    def get_readonly_fields(self, request: HttpRequest, obj: Node | None = None) -> Any:
        """While runs hold it its engine stays: another one would not know them, and they would count as lost."""
        in_use = obj is not None and is_in_use(obj)
        return ("executor", "engine_url", *self.readonly_fields) if in_use else self.readonly_fields

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

    new_fields: tuple[str, ...] = ()
    fixed_fields: tuple[str, ...] = ("scope", "owner")
    open_fields: tuple[str, ...] = ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """A new row asks for the owner's name; later whose it is can not be changed."""
        if obj is not None:
            kwargs["form"] = forms.ModelForm
        return super().get_form(request, obj, change=change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """In the order of the form."""
        return self.new_fields if obj is None else (*self.fixed_fields, *self.open_fields)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Nothing of a new row."""
        return () if obj is None else self.fixed_fields

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
    new_fields = ("scope", "name", "resource", "cap")
    fixed_fields = ("scope", "owner", "resource", "used")
    open_fields = ("cap",)

    def save_model(self, request: HttpRequest, obj: Usage, form: Any, change: bool) -> None:
        """The first cap of an owner counts what its runs hold already."""
        saved = set_cap(scope=obj.scope, scope_id=obj.scope_id, resource=obj.resource, cap=obj.cap)
        obj.pk = saved.pk
        obj.refresh_from_db()

    def has_delete_permission(self, request: HttpRequest, obj: Usage | None = None) -> bool:
        """A cap that is in use is taken away by ``manage.py set_quota ... none``."""
        return obj is None or not obj.reservations.exists()


@admin.register(QuotaWindow)
class QuotaWindowAdmin(OwnerNamed):
    form = QuotaWindowForm
    new_fields = ("scope", "name", "valid_from", "valid_until")
    open_fields = ("valid_from", "valid_until")
    list_display = ("scope", "owner", "valid_from", "valid_until")
    list_filter = ("scope",)
    search_fields = ("scope_id", "owner_name")

    def save_model(self, request: HttpRequest, obj: QuotaWindow, form: Any, change: bool) -> None:
        """Each owner has one window: a new one replaces it."""
        former = QuotaWindow.objects.filter(scope=obj.scope, scope_id=obj.scope_id).first()
        if former is not None:
            obj.pk = former.pk
            obj._state.adding = False
        super().save_model(request, obj, form, change)


@admin.register(Reservation)
class ReservationAdmin(ReadOnly, OperatorAdmin):
    list_display = ("attempt_id", "usage", "amount", "created_at", "released_at")
    list_filter = ("usage__resource",)
    search_fields = ("attempt_id",)
    list_select_related = ("usage",)
