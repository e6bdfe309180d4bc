"""One page of a list, without counting all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlencode

from django.db.models import Model, QuerySet
from django.http import HttpRequest

Row = TypeVar("Row", bound=Model)

PAGE_ROWS = 25


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row]):
    """Rows, and the addresses of the pages beside them (empty: there is none)."""

    rows: list[Row]
    search: str
    is_filtered: bool
    query: str
    previous_query: str
    next_query: str


def listing(request: HttpRequest, rows: QuerySet[Row], *filters: str) -> Listing[Row]:
    """The page that ``?page=`` asks for. ``filters``: query parameters that are kept from page to page."""
    number = _page_number(request)
    kept = {name: request.GET.get(name, "") for name in ("search", *filters) if request.GET.get(name)}
    start = (number - 1) * PAGE_ROWS
    found = list(rows[start : start + PAGE_ROWS + 1])
    has_next = len(found) > PAGE_ROWS
    return Listing(
        rows=found[:PAGE_ROWS],
        search=kept.get("search", ""),
        is_filtered=bool(kept) or number > 1,
        query=urlencode({**kept, "page": number}),
        previous_query=urlencode({**kept, "page": number - 1}) if number > 1 else "",
        next_query=urlencode({**kept, "page": number + 1}) if has_next else "",
    )


def whole_number(request: HttpRequest, name: str, default: int, *, least: int = 0, most: int = 2**53) -> int:
    """A query parameter as a whole number within bounds; the default when it is none."""
    text = request.GET.get(name, "")
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 17):
        return default
    return max(least, min(int(text), most))


def _page_number(request: HttpRequest) -> int:
    return whole_number(request, "page", 1, least=1, most=100_000)
