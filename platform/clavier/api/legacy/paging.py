"""Pages by number: ``pageNum`` and ``pageSize`` in, ``{pageNum, pageSize, totalPage, total, rows}`` out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from rest_framework import serializers

from clavier.api.legacy.fields import Body, Number, OneOf

DEFAULT_SIZE = 10
MAX_SIZE = 1000
#: The offset of the last page must fit a 64-bit integer with any page size.
MAX_NUMBER = 2**31 - 1
Row = TypeVar("Row", bound=Model)


class PageBody(Body):
    """What every list takes. 0 means the default, as the document's samples send it."""

    pageNum = Number(high=MAX_NUMBER, help_text="页码，默认 1 / page, default 1")
    pageSize = Number(high=MAX_SIZE, help_text="每页条数，默认 10 / rows on a page, default 10")
    sortOrder = OneOf(
        ("desc", "asc"),
        help_text="按创建时间排序，默认 desc；asc 时翻页期间的新增数据不影响已读页 / by creation time; with asc, rows "
        "that are added meanwhile change no page that was read",
    )


class PageData(serializers.Serializer[Any]):
    """A page."""

    pageNum = serializers.IntegerField()
    pageSize = serializers.IntegerField()
    totalPage = serializers.IntegerField()
    total = serializers.IntegerField()
    rows = serializers.ListField(child=serializers.DictField())


def page_of(rows: QuerySet[Row], query: dict[str, Any], show: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
    """One page; past the end it is empty."""
    number, size = query.get("pageNum") or 1, query.get("pageSize") or DEFAULT_SIZE
    total = rows.count()
    sign = "" if query.get("sortOrder") == "asc" else "-"
    start = (number - 1) * size
    found = rows.order_by(f"{sign}created_at", f"{sign}pk")[start : start + size] if start < total else []
    return {
        "pageNum": number,
        "pageSize": size,
        "totalPage": -(-total // size),
        "total": total,
        "rows": [show(row) for row in found],
    }
