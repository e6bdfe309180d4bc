"""When attempts that wait may start: by the clock or, when somebody set it back, on our own steady one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from django.utils import timezone

from clavier.runs.models import Attempt
from clavier.runs.services import LONGEST_BACK_OFF

LAUNCH_AGAIN_AFTER = timedelta(seconds=3)


class Due:
    """Since when, on the steady clock, attempts have been seen to wait for their start."""

    def __init__(self) -> None:
        self.since: dict[UUID, float] = {}

    def keep(self, attempts: Iterable[Attempt]) -> None:
        """Forget all others: they have ended."""
        self.since = {one.pk: self.since[one.pk] for one in attempts if one.pk in self.since}

    def is_due(self, attempt: Attempt) -> bool:
        """A retry has had its back-off, or the queue its time to start what began."""
        due = attempt.not_before or attempt.created_at + LAUNCH_AGAIN_AFTER
        longest = min(due - attempt.created_at, LONGEST_BACK_OFF)
        now = time.monotonic()
        if timezone.now() < due and now - self.since.setdefault(attempt.pk, now) < longest.total_seconds():
            return False
        self.since.pop(attempt.pk, None)
        return True
