from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from clavier.accounts.auth import operator_in_tenant
from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.core.errors import DomainError
from finetune_app.models import FineTuneTask
from finetune_app.services import retry_fine_tune_task, stop_fine_tune_task


@admin.register(FineTuneTask)
class FineTuneTaskAdmin(ReadOnly, OperatorAdmin):
    """Every tenant's tasks, with the operator's verbs."""

    list_display = ("name", "state", "recipe", "method", "tenant", "created_by", "base_version", "created_at")
    list_filter = ("run__state", "recipe", "method")
    search_fields = ("name", "description", "tenant__name", "created_by__username")
    list_select_related = ("run", "tenant", "created_by", "base_version__model")
    date_hierarchy = "created_at"
    actions: ClassVar = ["stop", "retry"]

    @admin.display(description="state", ordering="run__state")
    def state(self, task: FineTuneTask) -> str:
        """The newest run's state."""
        return task.run.state if task.run else "saved"

    @admin.action(description="Stop", permissions=["view"])
    def stop(self, request: HttpRequest, queryset: QuerySet[FineTuneTask]) -> None:
        """Stop each task's run."""
        self.each(request, queryset, stop_fine_tune_task)

    @admin.action(description="Retry failed and stopped tasks", permissions=["view"])
    def retry(self, request: HttpRequest, queryset: QuerySet[FineTuneTask]) -> None:
        """Start each task again."""
        self.each(request, queryset, retry_fine_tune_task)

    def each(self, request: HttpRequest, queryset: QuerySet[FineTuneTask], verb: Callable[..., Any]) -> None:
        """Do a service's verb for each task and tell how it went."""
        for task in queryset:
            try:
                verb(actor=operator_in_tenant(request, task.tenant), task=task)
                self.message_user(request, f"{task.name}: done", messages.SUCCESS)
            except DomainError as error:
                self.message_user(request, f"{task.name}: {error.message}", messages.WARNING)
