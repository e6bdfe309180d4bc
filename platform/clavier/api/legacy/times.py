"""Times and durations in the document's spelling."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.utils import timezone

from clavier.runs.models import Run


def time_of(moment: datetime | None) -> str | None:
    """``2023-10-31 11:49:18`` in the platform's time zone."""
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S") if moment else None


def duration_of(run: Run | None) -> str:
    """How long a run has been running: ``50秒``, ``54分41秒``, ``1小时2分3秒``; empty before it starts."""
    if run is None or run.started_at is None:
        return ""
    seconds = max(0, int(((run.ended_at or timezone.now()) - run.started_at).total_seconds()))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours}小时{minutes}分{seconds}秒"
    return f"{minutes}分{seconds}秒" if minutes else f"{seconds}秒"


def timestamp_of(moment: datetime) -> dict[str, Any]:
    """A java.sql.Timestamp as the document's list of versions prints it: month from 0, year from 1900, time in ms."""
    local = timezone.localtime(moment)
    offset = local.utcoffset()
    return {
        "date": local.day,
        "day": local.isoweekday() % 7,
        "hours": local.hour,
        "minutes": local.minute,
        "month": local.month - 1,
        "nanos": local.microsecond * 1000,
        "seconds": local.second,
        "time": int(moment.timestamp() * 1000),
        "timezoneOffset": -int(offset.total_seconds() // 60) if offset else 0,
        "year": local.year - 1900,
    }
