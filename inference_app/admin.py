from __future__ import annotations

from typing import ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import TabularInline

from clavier.accounts.auth import operator_in_tenant
from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.core.errors import DomainError
from inference_app.models import InferenceService, Replica, ServiceVersion
from inference_app.services import stop_service


class ServiceVersionInline(ReadOnly, TabularInline):
    model = ServiceVersion
    extra = 0


@admin.register(InferenceService)
class InferenceServiceAdmin(ReadOnly, OperatorAdmin):
    list_display = ("name", "tenant", "desired_state", "created_by", "created_at")
    list_filter = ("desired_state",)
    search_fields = ("name", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")
    inlines = (ServiceVersionInline,)
    actions: ClassVar = ["stop"]

    @admin.action(description="Stop", permissions=["view"])
    def stop(self, request: HttpRequest, queryset: QuerySet[InferenceService]) -> None:
        """Stop each service, as an operator."""
        for service in queryset.select_related("tenant"):
            try:
                stop_service(actor=operator_in_tenant(request, service.tenant), service=service)
                self.message_user(request, f"{service.name}: stopping", messages.SUCCESS)
            except DomainError as error:
                self.message_user(request, f"{service.name}: {error.message}", messages.WARNING)


@admin.register(ServiceVersion)
class ServiceVersionAdmin(ReadOnly, OperatorAdmin):
    list_display = ("__str__", "model_version", "traffic_percent", "num_replicas", "context_tokens", "created_at")
    search_fields = ("service__name",)
    list_select_related = ("service", "model_version__model")


@admin.register(Replica)
class ReplicaAdmin(ReadOnly, OperatorAdmin):
    list_display = ("__str__", "run", "restarts")
    list_filter = ("run__state",)
    search_fields = ("service_version__service__name",)
    list_select_related = ("service_version__service", "run")
