"""``/healthz``: the process lives. ``/readyz``: database, queue, reconciler and disk, each by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse

from clavier.core.disk import low_disks
from clavier.runs import queue
from clavier.runs.queries import reconciler_is_alive
from runner.worker.invariants import last_report


def healthz(request: HttpRequest) -> JsonResponse:
    """200 while the process answers."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when every part works, else 503; each part says ``ok`` or what is wrong."""
    checks: dict[str, Callable[[], str]] = {
        "database": check_database,
        "queue": check_queue,
        "reconciler": check_reconciler,
        "disk": check_disk,
    }
    parts: dict[str, Any] = {name: check() for name, check in checks.items()}
    is_ready = all(answer == "ok" for answer in parts.values())
    parts["invariants"] = describe_invariants()  # told, but a finding alone does not make the platform unready
    response = JsonResponse({"status": "ok" if is_ready else "not ready", **parts}, status=200 if is_ready else 503)
    response._has_been_logged = True  # type: ignore[attr-defined]  # whoever polls reads the answer; not an error
    return response


def check_database() -> str:
    """One query."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"


def check_queue() -> str:
    """One ping."""
    return "ok" if queue.ping() else "does not answer; runs start by the reconciler, some seconds later"


def check_reconciler() -> str:
    """The lease that it renews on every pass."""
    try:
        return "ok" if reconciler_is_alive() else "no heartbeat; runs neither start nor end"
    except DatabaseError as error:
        return f"unknown: {type(error).__name__}"


def describe_invariants() -> str:
    """What the reconciler's last look found."""
    report = last_report()
    findings = report.get("findings", [])
    if not findings:
        return "ok" if report else "not looked at yet"
    names = ", ".join(sorted({finding["invariant"] for finding in findings}))
    return f"{len(findings)} findings ({names}) at {report['checked_at']}; run manage.py check_invariants"


def check_disk() -> str:
    """Free space above the reserve."""
    low = low_disks()
    return f"{low[0]}; nothing new starts" if low else "ok"
