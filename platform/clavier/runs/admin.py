from __future__ import annotations

from typing import ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import TabularInline

from clavier.core.admin import OperatorAdmin, ReadOnly
from clavier.core.errors import DomainError
from clavier.runs.models import Attempt, Lease, Outbox, Peer, Run, RunEvent, RunFolder
from clavier.runs.services import announce, stop_run
from clavier.runs.waiting import explain


class AttemptInline(ReadOnly, TabularInline):
    model = Attempt
    extra = 0
    fields = ("number", "node", "created_at", "started_at", "ended_at", "exit_code", "end_reason", "max_memory_mib")
    readonly_fields = fields


class PeerInline(ReadOnly, TabularInline):
    model = Peer
    extra = 0
    fields = ("rank", "node")
    readonly_fields = fields


class EventInline(ReadOnly, TabularInline):
    model = RunEvent
    extra = 0
    fields = ("at", "from_state", "to_state", "reason", "message", "actor_name")
    readonly_fields = fields


@admin.register(Run)
class RunAdmin(ReadOnly, OperatorAdmin):
    """Every run of every tenant, with the operator's verbs."""

    list_display = ("name", "kind", "state", "tenant", "created_by", "priority", "created_at", "ended_at", "end_reason")
    list_filter = ("state", "kind", "end_reason", "resource_group")
    search_fields = ("name", "id", "subject_id", "tenant__name", "created_by__username")
    list_select_related = ("tenant", "created_by")
    ordering = ("-created_at",)
    date_hierarchy = "created_at"
    inlines = (AttemptInline, EventInline)
    readonly_fields = ("waits_for",)
    actions: ClassVar = ["stop", "requeue"]

    @admin.display(description="waits for")
    def waits_for(self, run: Run) -> str:
        """Why it waits, its position, and what would let it start, from what is now."""
        waiting = explain(run)
        return f"{waiting.position}. {waiting.why} {waiting.starts_when}" if waiting.obstacle else "-"

    @admin.action(description="Stop", permissions=["view"])
    def stop(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        """Stop each run, as an operator."""
        for run in queryset:
            try:
                stop_run(run=run, actor_name=request.user.get_username(), by_operator=True)
                self.message_user(request, f"{run.name}: {run.state}", messages.SUCCESS)
            except DomainError as error:
                self.message_user(request, f"{run.name}: {error.message}", messages.WARNING)

    @admin.action(description="Requeue: wake the scheduler for waiting runs", permissions=["view"])
    def requeue(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        """Tell the queue again; nothing is lost by it, and nothing runs twice."""
        for run in queryset:
            announce(run)
        self.message_user(request, "The scheduler was woken.", messages.SUCCESS)


@admin.register(Attempt)
class AttemptAdmin(ReadOnly, OperatorAdmin):
    list_display = ("id", "run", "number", "node", "created_at", "started_at", "ended_at", "exit_code", "end_reason")
    list_filter = ("end_reason", "node")
    search_fields = ("id", "run__name", "run__id")
    list_select_related = ("run", "node")
    inlines = (PeerInline,)


@admin.register(RunFolder)
class RunFolderAdmin(ReadOnly, OperatorAdmin):
    list_display = ("run", "size_bytes", "inodes", "counted_at")
    search_fields = ("run__name", "run__id")
    list_select_related = ("run",)


@admin.register(Peer)
class PeerAdmin(ReadOnly, OperatorAdmin):
    list_display = ("attempt", "rank", "node")
    list_filter = ("node",)
    search_fields = ("attempt__id", "attempt__run__name")
    list_select_related = ("attempt", "node")


@admin.register(RunEvent)
class RunEventAdmin(ReadOnly, OperatorAdmin):
    list_display = ("at", "run", "from_state", "to_state", "reason", "message", "actor_name")
    list_filter = ("to_state", "reason")
    search_fields = ("run__name", "run__id", "message", "actor_name")
    list_select_related = ("run",)


@admin.register(Outbox)
class OutboxAdmin(ReadOnly, OperatorAdmin):
    list_display = ("run_id", "created_at")


@admin.register(Lease)
class LeaseAdmin(ReadOnly, OperatorAdmin):
    list_display = ("name", "holder", "epoch", "renewed_at", "expires_at")
