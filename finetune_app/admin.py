from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import TabularInline

from clavier.accounts.auth import operator_in_tenant
from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.core.errors import DomainError
from finetune_app.models import FineTuneTask, HyperparameterSearch, SearchTrial, TrainingCalibration
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


class TrialInline(ReadOnly, TabularInline):
    model = SearchTrial
    extra = 0
    fields = ("number", "parameters", "value", "task", "ended_at", "message")
    readonly_fields = fields


@admin.register(HyperparameterSearch)
class HyperparameterSearchAdmin(ReadOnly, OperatorAdmin):
    """Every tenant's searches with their trials."""

    list_display = ("name", "state", "metric", "num_trials", "tenant", "created_by", "created_at", "ended_at")
    search_fields = ("name", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")
    inlines = (TrialInline,)


@admin.register(SearchTrial)
class SearchTrialAdmin(ReadOnly, OperatorAdmin):
    list_display = ("__str__", "value", "task", "ended_at", "message")
    search_fields = ("search__name", "task__name")
    list_select_related = ("search", "task")


@admin.register(TrainingCalibration)
class TrainingCalibrationAdmin(ReadOnly, OperatorAdmin):
    """What the estimator has learned; deleting a row lets it learn anew."""

    list_display = (
        "recipe", "method", "on_gpu", "magnitude", "num_runs", "memory_log_mean", "seconds_log_mean", "updated_at"
    )  # fmt: skip
    search_fields = ("recipe", "method")
