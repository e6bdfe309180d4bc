"""What the dashboard shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from clavier.core.actor import Actor
from clavier.files.queries import storage_usage
from clavier.portal import labels
from clavier.portal.contexts.tasks import TaskRow, task_rows
from clavier.quotas.queries import node_usage
from clavier.runs.queries import counts_by_state
from clavier.runs.states import LIVE_STATES
from datasets_app.queries import search as visible_datasets
from finetune_app.queries import visible_tasks
from inference_app.queries import visible_services
from models_app.queries import visible_models

RECENT_TASKS = 6

# The first reading has nothing to compare with and says 0: take it now.
psutil.cpu_percent(interval=None)


@dataclass(frozen=True, slots=True)
class Gauge:
    """How much of something is in use, in one unit."""

    name: object
    used: float
    total: float
    unit: str = ""

    @property
    def percent(self) -> float:
        """0 to 100."""
        return min(100.0, 100 * self.used / self.total) if self.total else 0.0

    @property
    def tone(self) -> str:
        """When it gets tight."""
        return "bad" if self.percent >= 95 else "warn" if self.percent >= 80 else "good"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One machine and what runs hold of it."""

    name: str
    resource_group: str
    gauges: list[Gauge]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Counts, recent tasks and the state of the system."""

    num_datasets: int
    num_models: int
    num_tasks: int
    num_live: int
    num_failed: int
    num_services: int
    recent: list[TaskRow]
    is_live: bool
    system: list[Gauge]
    cpu: Gauge
    storage: Gauge
    nodes: list[NodeRow]


def dashboard(actor: Actor) -> Dashboard:
    """Everything on the first page."""
    by_state = counts_by_state(actor, "fine_tune")
    tasks = visible_tasks(actor)
    recent = task_rows(tasks[:RECENT_TASKS])
    usage = storage_usage(actor)
    return Dashboard(
        num_datasets=visible_datasets(actor).count(),
        num_models=visible_models(actor).count(),
        num_tasks=tasks.count(),
        num_live=sum(by_state.get(state, 0) for state in LIVE_STATES),
        num_failed=by_state.get("FAILED", 0),
        num_services=visible_services(actor).filter(desired_state="running").count(),
        recent=recent,
        is_live=any(row.is_live for row in recent),
        system=system_gauges(),
        cpu=Gauge("CPU", psutil.cpu_percent(interval=None), 100, "%"),
        storage=Gauge("", usage["bytes_used"], usage["bytes_limit"]),
        nodes=[node_row(node) for node in node_usage()],
    )


def system_gauges() -> list[Gauge]:
    """Memory and disk of this machine, in bytes."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(settings.CLAVIER_HOME))
    return [
        Gauge(_("Memory"), memory.total - memory.available, memory.total),
        Gauge(_("Disk"), disk.used, disk.used + disk.free),
    ]


def node_row(node: dict[str, Any]) -> NodeRow:
    """What runs hold of a node; resources that it does not have are left out."""
    gauges = [
        Gauge(
            labels.RESOURCES.get(row["resource"], row["resource"]),
            row["used"] / labels.RESOURCE_UNITS.get(row["resource"], 1),
            row["cap"] / labels.RESOURCE_UNITS.get(row["resource"], 1),
        )
        for row in node["usage"]
        if row["cap"]
    ]
    return NodeRow(node["name"], node["resource_group"], gauges)
