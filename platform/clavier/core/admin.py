"""What every admin page shares."""

from __future__ import annotations

from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.paginator import InfinitePaginator


class OperatorAdmin(ModelAdmin):
    """Lists without any COUNT: pages know only whether there is a next one, at any size of the table."""

    paginator = InfinitePaginator
    show_full_result_count = False
    list_per_page = 50


class ReadOnly:
    """Rows that only services write: operators look, and act through actions."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody adds rows by hand."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody changes rows by hand."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody deletes rows by hand."""
        return False
