"""Pages by keyset: a cursor is a row's place in (time, id), so no page is slower than the first and none counts."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from clavier.core.errors import Invalid, quoted

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
#: Names of the query parameters that every list takes.
PARAMETERS = ("cursor", "limit")


class CreatedCursor(BasePagination):
    """Newest first: ``{"items": [...], "next": cursor | null, "previous": cursor | null}``."""

    time_field = "created_at"

    def paginate_queryset(  # type: ignore[override]  # lists of the native API are always querysets
        self, queryset: QuerySet[Any], request: Request, view: APIView | None = None
    ) -> list[Any]:
        """The rows of the page asked for. Raises Invalid (``out_of_range``, ``bad_cursor``)."""
        limit = read_limit(request.query_params.get("limit"))
        cursor = request.query_params.get("cursor")
        backwards, place = read_cursor(cursor, queryset.model) if cursor else (False, None)
        sign = "" if backwards else "-"
        rows = queryset.order_by(f"{sign}{self.time_field}", f"{sign}pk")
        if place is not None:
            rows = rows.filter(self._beyond(*place, backwards=backwards))
        found = list(rows[: limit + 1])
        has_more, page = len(found) > limit, found[:limit]
        if backwards:
            page.reverse()
        has_next, has_previous = (True, has_more) if backwards else (has_more, place is not None)
        self.next = self._cursor(page[-1], backwards=False) if page and has_next else None
        self.previous = self._cursor(page[0], backwards=True) if page and has_previous else None
        return page

    def get_paginated_response(self, data: Any) -> Response:
        """The page in its envelope."""
        return Response({"items": data, "next": self.next, "previous": self.previous})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """How OpenAPI describes the envelope."""
        cursor = {"type": "string", "nullable": True}
        return {
            "type": "object",
            "required": ["items", "next", "previous"],
            "properties": {"items": schema, "next": cursor, "previous": cursor},
        }

    def _beyond(self, time: datetime, key: Any, *, backwards: bool) -> Q:
        word = "gt" if backwards else "lt"
        same = Q(**{self.time_field: time, f"pk__{word}": key})
        # The first condition alone bounds the index scan; the second only breaks ties.
        return Q(**{f"{self.time_field}__{word}e": time}) & (Q(**{f"{self.time_field}__{word}": time}) | same)

    def _cursor(self, row: Model, *, backwards: bool) -> str:
        place = [int(backwards), getattr(row, self.time_field).isoformat(), str(row.pk)]
        return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


class EventCursor(CreatedCursor):
    """The same for what has a time and no creation."""

    time_field = "at"


def read_limit(text: str | None) -> int:
    """Rows on a page. Raises Invalid."""
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT):
        raise Invalid(
            f"limit: {quoted(text)} is no whole number from 1 to {MAX_LIMIT}.", code="out_of_range", field="limit"
        )
    return int(text)


def read_cursor(text: str, model: type[Model]) -> tuple[bool, tuple[datetime, Any]]:
    """Direction and place of a cursor. It names a place only, so a forged one shows nothing new. Raises Invalid."""
    try:
        padded = text + "=" * (-len(text) % 4)
        backwards, time, key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        place = datetime.fromisoformat(time), model._meta.pk.to_python(key)
        if backwards not in (0, 1) or place[0].tzinfo is None:
            raise ValueError("no place")
    except (ValueError, TypeError, ValidationError, RecursionError) as error:
        raise Invalid(
            f"cursor: {quoted(text, 60)} is no cursor of this list. Take 'next' or 'previous' of a page as it is.",
            code="bad_cursor",
            field="cursor",
        ) from error
    return bool(backwards), place
