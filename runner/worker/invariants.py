"""The invariants that need the executors (I4, I6), and the look at all of them each minute."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Max, Q
from django.utils import timezone

from clavier.quotas.models import Node
from clavier.runs.invariants import FRESH, Finding, find_all
from clavier.runs.models import Attempt
from clavier.runs.states import RunState
from runner.contract.folder import write_json_durably
from runner.executors.base import Observation
from runner.worker.engines import Engine, engines_of, executor
from runner.worker.listing import Listings

logger = logging.getLogger(__name__)

#: Where the newest look is kept for /readyz and for people.
REPORT = "invariants.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and the executors of which nothing is known because they did not answer."""

    findings: list[Finding] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


def check_everything(since: datetime | None = None) -> Report:
    """All invariants. ``since``: only what changed from then on; the executors are always looked at whole."""
    silent: list[str] = []
    findings = [*executor_findings(silent), *find_all(since)]
    return Report(sorted(findings, key=lambda finding: int(finding.invariant[1:])), silent)


def executor_findings(silent: list[str]) -> Iterator[Finding]:
    """I4 and I6 of every executor in use; those that do not answer are added to ``silent``."""
    live = Attempt.objects.filter(ended_at=None)
    used = Node.objects.filter(Q(attempts__in=live) | Q(peers__attempt__in=live)).distinct()
    listings = Listings()
    # Before the rows are read: an attempt's row is older than its process.
    answers = listings.ask({engine: executor(engine) for engine in engines_of(used)})
    silent += [f"{engine}: {why}" for engine, why in listings.silent.items()]
    for engine, observed in answers.items():
        yield from strays(observed)
        yield from out_of_sight(engine, observed)


def strays(observed: list[Observation]) -> Iterator[Finding]:
    """I4: what an executor has belongs to a live attempt, or to one that ended within the last minute."""
    fresh = timezone.now() - FRESH
    rows = {attempt.pk: attempt for attempt in Attempt.objects.filter(pk__in=map(attempt_id, observed))}
    for seen in observed:
        row = rows.get(attempt_id(seen))
        if row is None and (seen.started_at is None or seen.started_at < fresh.timestamp()):
            yield Finding("I4", f"{seen.name} is {seen.state} and belongs to no attempt")
        elif row is not None and row.ended_at is not None and row.ended_at < fresh:
            yield Finding("I4", f"{seen.name} is {seen.state}, its attempt ended at {row.ended_at:%Y-%m-%d %H:%M:%S}")


def out_of_sight(engine: Engine, observed: list[Observation]) -> Iterator[Finding]:
    """I6: of a run that neither waits nor has ended its executor knows something, or it changed a minute ago."""
    known = {attempt_id(seen) for seen in observed}
    fresh = timezone.now() - FRESH
    live = Attempt.objects.filter(ended_at=None, node__executor=engine.executor, node__engine_url=engine.url)
    for attempt in (
        live.exclude(run__state=RunState.PENDING).select_related("run").annotate(heard_at=Max("run__events__at"))
    ):
        moments = [attempt.created_at, attempt.not_before, attempt.heard_at]
        if attempt.pk not in known and max(moment for moment in moments if moment is not None) < fresh:
            yield Finding("I6", f"run {attempt.run_id} is {attempt.run.state}, and {engine} knows nothing of {attempt}")


def attempt_id(seen: Observation) -> UUID:
    """The attempt of a process or container; further ranks of a run carry a suffix."""
    return UUID(seen.name.partition(".")[0])


class Watch:
    """The reconciler's look: each minute at what changed lately, each hour at everything."""

    SHORT_S, LONG_S = 60.0, 3600.0

    def __init__(self) -> None:
        now = time.monotonic()
        self._next, self._next_whole = now + self.SHORT_S, now + self.LONG_S

    @property
    def is_due(self) -> bool:
        """It is time."""
        return time.monotonic() >= self._next

    def look(self) -> None:
        """Now; every finding is logged, counted and kept in ``invariants.json``."""
        now = time.monotonic()
        self._next = now + self.SHORT_S
        is_whole = now >= self._next_whole
        if is_whole:
            self._next_whole = now + self.LONG_S
        report = check_everything(None if is_whole else timezone.now() - timedelta(minutes=10))
        for finding in report.findings:
            logger.error("invariant broken: %s", finding)
        keep(report)


def keep(report: Report) -> None:
    """Write the newest report beside the data, with the number of findings since ever."""
    total = int(last_report().get("total_findings", 0)) + len(report.findings)
    value = {"checked_at": timezone.now().isoformat(), "total_findings": total, **asdict(report)}
    write_json_durably(Path(settings.CLAVIER_HOME) / REPORT, value)


def last_report() -> dict[str, Any]:
    """The newest kept report; empty when there is none that can be read."""
    try:
        value = json.loads((Path(settings.CLAVIER_HOME) / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
