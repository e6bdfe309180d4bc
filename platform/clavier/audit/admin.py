from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from auditlog.models import LogEntry
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from unfold.decorators import action

from clavier.core.admin import OperatorAdmin, ReadOnly

COLUMNS = ("time", "user", "action", "event", "object type", "object id", "object", "changes", "address", "request id")

admin.site.unregister(LogEntry)


@admin.register(LogEntry)
class AuditAdmin(ReadOnly, OperatorAdmin):
    """What was created, changed, deleted, started and stopped, who signed in, and which keys operators used."""

    list_display = ("timestamp", "actor", "action", "event", "content_type", "object_repr", "remote_addr")
    list_filter = ("action", "content_type")
    search_fields = ("object_repr", "object_pk", "actor__username", "cid")
    list_select_related = ("actor", "content_type")
    date_hierarchy = "timestamp"
    actions: ClassVar = ["export_selected"]
    actions_list: ClassVar = ["export_all"]

    @admin.display(description="event")
    def event(self, entry: LogEntry) -> str:
        """The verb of an entry that is more than a changed row."""
        return event_of(entry)

    @admin.action(description="Export as CSV", permissions=["view"])
    def export_selected(self, request: HttpRequest, queryset: QuerySet[LogEntry]) -> StreamingHttpResponse:
        """The chosen entries."""
        return exported(queryset)

    @action(description="Export everything as CSV", url_path="export", permissions=["view"])  # type: ignore[untyped-decorator]
    def export_all(self, request: HttpRequest) -> StreamingHttpResponse:
        """The whole log, oldest first."""
        return exported(LogEntry.objects.all())


class _Echo:
    """A file that hands back what is written to it."""

    def write(self, line: str) -> str:
        return line


def exported(entries: QuerySet[LogEntry]) -> StreamingHttpResponse:
    """The entries as a CSV download, row by row."""
    writer = csv.writer(_Echo())
    rows = entries.select_related("actor", "content_type").order_by("timestamp", "pk").iterator(chunk_size=1000)

    def lines() -> Iterator[str]:
        yield "\ufeff" + writer.writerow(COLUMNS)  # the mark makes spreadsheets read UTF-8
        for entry in rows:
            yield writer.writerow([harmless(value) for value in row_of(entry)])

    response = StreamingHttpResponse(lines(), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="audit.csv"'
    return response


def row_of(entry: LogEntry) -> list[Any]:
    """The columns of an entry."""
    return [
        entry.timestamp.isoformat(),
        entry.actor.username if entry.actor else "",
        entry.get_action_display(),
        event_of(entry),
        str(entry.content_type),
        entry.object_pk,
        entry.object_repr,
        json.dumps({**(entry.changes or {}), **(entry.additional_data or {})}, ensure_ascii=False),
        entry.remote_addr or "",
        entry.cid or "",
    ]


def event_of(entry: LogEntry) -> str:
    """``login``, ``stop``, ``key_use`` ...; empty for a plain change of a row."""
    return str((entry.additional_data or {}).get("event", ""))


def harmless(value: Any) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
