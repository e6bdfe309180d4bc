from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.http import HttpRequest
from unfold.admin import TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from clavier.accounts.models import ApiKey, Membership, Tenant, User
from clavier.accounts.services import next_tenant_number
from clavier.core.admin import OperatorAdmin


class MembershipInline(TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("tenant", "user")


@admin.register(Tenant)
class TenantAdmin(OperatorAdmin):
    list_display = ("name", "display_name", "number", "is_active", "created_at")
    list_filter = ("is_active",)
    search_fields = ("name", "display_name")
    readonly_fields = ("number",)
    inlines = (MembershipInline,)

    def save_model(self, request: HttpRequest, obj: Tenant, form: Any, change: bool) -> None:
        """A new tenant gets the next number."""
        if not change:
            obj.number = next_tenant_number()
        super().save_model(request, obj, form, change)


if TYPE_CHECKING:
    UserAdminBase = DjangoUserAdmin[User]
else:
    UserAdminBase = DjangoUserAdmin


@admin.register(User)
class UserAdmin(UserAdminBase, OperatorAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_staff", "is_active", "last_login", "date_joined")
    inlines = (MembershipInline,)


@admin.register(Membership)
class MembershipAdmin(OperatorAdmin):
    list_display = ("user", "tenant", "role", "is_default", "created_at")
    list_filter = ("role",)
    search_fields = ("user__username", "tenant__name")
    autocomplete_fields = ("tenant", "user")
    list_select_related = ("user", "tenant")


@admin.register(ApiKey)
class ApiKeyAdmin(OperatorAdmin):
    list_display = ("prefix", "name", "user", "tenant", "created_at", "last_used_at", "expires_at", "revoked_at")
    list_filter = ("revoked_at",)
    search_fields = ("prefix", "name", "user__username", "tenant__name")
    readonly_fields = ("prefix", "digest", "user", "tenant", "scopes", "created_at", "last_used_at")
    list_select_related = ("user", "tenant")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Keys are made by their users, who alone see the secret."""
        return False
