"""Which of many waiting runs a pass looks at, chosen and put into the order of admission by the database.

One statement joins the waiting runs of a group with what their tenants hold, their nominal shares and what is left of
their caps, and returns the first few in the order of admission. So a pass costs the same however many runs wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from clavier.core.sql import prepared
from clavier.quotas.models import QuotaWindow
from clavier.runs.demand import SPECIAL, containers_of
from clavier.runs.models import Run
from clavier.runs.placing import Amounts, fits, total
from clavier.runs.planner import UNLIMITED, Candidate, Group, Order, order_of
from runner.contract.run_spec import RunSpec

RESERVE_AFTER = timedelta(minutes=10)
#: Runs that fit, read at once; a pass with more admissions than that reads again.
FIRST = 128
#: Runs that do not fit, of which one may hold nodes or want borrowed room back.
BLOCKED = 64
#: More different gaps than that are asked for by their largest parts only.
MAX_GAPS = 40

COUNTED = ("cpu_milli", "memory_mib", "gpus")

#: What each tenant of a group holds. The states stand in it as they do in the partial index that covers it.
HELD = """
    SELECT tenant_id, CAST(SUM(cpu_milli) AS BIGINT) AS cpu_milli, CAST(SUM(memory_mib) AS BIGINT) AS memory_mib,
           CAST(SUM(gpus) AS BIGINT) AS gpus
    FROM runs_run
    WHERE state IN ('PREPARING', 'RUNNING', 'STOPPING') AND resource_group = %(group)s
    GROUP BY tenant_id
"""
#: ``described`` only joins: were the conditions on owners in it, PostgreSQL would take them for rare and loop.
WAITING = """
WITH held AS ({held}), allowed AS (
    SELECT scope_id,
           MIN(CASE resource WHEN 'running_runs' THEN cap - used END) AS runs,
           MIN(CASE resource WHEN 'cpu_milli' THEN cap - used END) AS cpu_milli,
           MIN(CASE resource WHEN 'memory_mib' THEN cap - used END) AS memory_mib,
           MIN(CASE resource WHEN 'gpus' THEN cap - used END) AS gpus
    FROM quotas_usage WHERE scope IN ('tenant', 'user') GROUP BY scope_id
), described AS MATERIALIZED (
    SELECT run.id, run.tenant_id, run.created_by_id, run.is_urgent, run.priority, run.created_at, run.queued_at,
           run.not_before, run.cpu_milli, run.memory_mib, run.gpus, run.shape,
           COALESCE(held.cpu_milli, 0) AS held_cpu_milli, COALESCE(held.memory_mib, 0) AS held_memory_mib,
           COALESCE(held.gpus, 0) AS held_gpus,
           share.cpu_milli AS nominal_cpu_milli, share.memory_mib AS nominal_memory_mib, share.gpus AS nominal_gpus,
           share.may_borrow,
           tenant.runs AS tenant_runs, tenant.cpu_milli AS tenant_cpu_milli, tenant.memory_mib AS tenant_memory_mib,
           tenant.gpus AS tenant_gpus,
           person.runs AS person_runs, person.cpu_milli AS person_cpu_milli, person.memory_mib AS person_memory_mib,
           person.gpus AS person_gpus
    FROM runs_run AS run
    LEFT JOIN held ON held.tenant_id = run.tenant_id
    LEFT JOIN quotas_tenantshare AS share
           ON share.tenant_id = run.tenant_id AND share.resource_group_id = %(group_id)s
    LEFT JOIN allowed AS tenant ON tenant.scope_id = run.tenant_id
    LEFT JOIN allowed AS person ON person.scope_id = run.created_by_id
    WHERE run.state = 'PENDING' AND run.resource_group = %(group)s
      AND (run.not_before IS NULL OR run.not_before <= %(now)s)
      AND {chosen}
), waiting AS (
    SELECT described.*,
           CASE WHEN held_cpu_milli + cpu_milli <= nominal_cpu_milli
                 AND held_memory_mib + memory_mib <= nominal_memory_mib
                 AND held_gpus + gpus <= nominal_gpus THEN 1 ELSE 0 END AS is_nominal,
           {greatest}(CAST(held_cpu_milli AS FLOAT) / %(cpu_milli)s, CAST(held_memory_mib AS FLOAT) / %(memory_mib)s,
                      CAST(held_gpus AS FLOAT) / %(gpus)s) AS dominant_share
    FROM described
    WHERE COALESCE(tenant_runs, 1) >= 1 AND COALESCE(person_runs, 1) >= 1
      AND COALESCE(tenant_cpu_milli, cpu_milli) >= cpu_milli AND COALESCE(person_cpu_milli, cpu_milli) >= cpu_milli
      AND COALESCE(tenant_memory_mib, memory_mib) >= memory_mib
      AND COALESCE(person_memory_mib, memory_mib) >= memory_mib
      AND COALESCE(tenant_gpus, gpus) >= gpus AND COALESCE(person_gpus, gpus) >= gpus
)
SELECT id, tenant_id, created_by_id, is_urgent, priority, created_at,
       CASE WHEN queued_at <= %(old)s AND (not_before IS NULL OR not_before <= %(old)s) THEN 1 ELSE 0 END,
       cpu_milli, memory_mib, gpus, shape
FROM waiting
WHERE (is_nominal = 1 OR COALESCE(may_borrow, {true}) = {true}) {further}
ORDER BY is_urgent DESC, is_nominal DESC, CASE is_nominal WHEN 1 THEN 0 ELSE dominant_share END,
         priority DESC, created_at, id
LIMIT {limit}
"""


@dataclass(slots=True)
class Selection:
    """``until``: a plan is right up to there, since what comes later in the order was not read; None: all was read."""

    candidates: list[Candidate] = field(default_factory=list)
    until: Order | None = None


def select(group: Group, now: datetime, *, first: int = FIRST, has_claims: bool = False) -> Selection:
    """The runs of a group that fit somewhere, and of those that do not the first that may hold nodes for themselves.

    ``has_claims``: also the first that may want borrowed room back. Nothing is read beside one statement while
    nothing fits and nobody can want room back.
    """
    question = Question(group, now)
    fitting = question.ask("{fits}", first)
    selection = Selection(fitting)
    if len(fitting) == first:
        selection.until = order_of(fitting[-1], group)
    if fitting:
        old = "(run.queued_at <= %(old)s AND (run.not_before IS NULL OR run.not_before <= %(old)s))"
        selection.candidates += question.ask(f"NOT {{fits}} AND {old}", BLOCKED)
    if has_claims:
        known = {candidate.id for candidate in selection.candidates}
        claims = question.ask("NOT {fits}", BLOCKED, further="AND is_nominal = 1")
        selection.candidates += [candidate for candidate in claims if candidate.id not in known]
    return selection


class Question:
    """The statement over one group, at one moment."""

    def __init__(self, group: Group, now: datetime) -> None:
        self.group, self.now = group, now
        self.shut = list(QuotaWindow.objects.filter(valid_from__gt=now).values_list("scope_id", flat=True)) + list(
            QuotaWindow.objects.filter(valid_until__lte=now).values_list("scope_id", flat=True)
        )

    def ask(self, chosen: str, limit: int, *, further: str = "") -> list[Candidate]:
        """The first runs for which ``chosen`` holds; ``{fits}`` in it: could be placed now."""
        capacity = self.group.capacity
        old = self.now - RESERVE_AFTER
        parameters: dict[str, Any] = {
            "group": self.group.name,
            "group_id": prepared(self.group.id),
            "now": prepared(self.now),
            "old": prepared(old),
            # A resource that the group has none of is nobody's dominant share.
            **{name: float(whole or UNLIMITED) for name, whole in zip(COUNTED, capacity, strict=True)},
        }
        where = chosen.replace("{fits}", fits_somewhere(self.group, parameters)) + self.not_shut(parameters)
        is_postgresql = connection.vendor == "postgresql"
        statement = WAITING.format(
            held=HELD,
            chosen=where,
            further=further,
            limit=int(limit),
            true="TRUE" if is_postgresql else "1",
            greatest="GREATEST" if is_postgresql else "MAX",
        )
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return to_candidates(self.group, cursor.fetchall())

    def not_shut(self, parameters: dict[str, Any]) -> str:
        """Not of owners whose quota is not valid now."""
        if not self.shut:
            return ""
        names = [f"shut_{number}" for number in range(len(self.shut))]
        parameters.update(zip(names, map(prepared, self.shut), strict=True))
        marks = ", ".join(f"%({name})s" for name in names)
        return f" AND run.tenant_id NOT IN ({marks}) AND run.created_by_id NOT IN ({marks})"


def fits_somewhere(group: Group, parameters: dict[str, Any]) -> str:
    """A condition that every run meets which could be placed now, and few others."""
    gaps = largest_gaps(node.free for node in group.nodes)
    several = total(gap for gap in (node.free for node in group.nodes) if min(gap) >= 0)
    alternatives = []
    for number, (gap, containers) in enumerate([*((gap, "= 1") for gap in gaps), (several, "> 1")]):
        parts = [f"run.num_containers {containers}"]
        for name, room in zip(COUNTED, gap, strict=True):
            parameters[f"gap_{number}_{name}"] = min(room, UNLIMITED)
            parts.append(f"run.{name} <= %(gap_{number}_{name})s")
        alternatives.append(f"({' AND '.join(parts)})")
    return f"({' OR '.join(alternatives)})"


def largest_gaps(gaps: Iterable[Amounts]) -> list[Amounts]:
    """Those that no other contains; one that contains all when there are very many."""
    distinct = {gap for gap in gaps if gap[0] > 0 and gap[1] > 0 and gap[2] >= 0}
    best = sorted(gap for gap in distinct if not any(gap != other and fits(gap, other) for other in distinct))
    if len(best) > MAX_GAPS:
        return [(max(gap[0] for gap in best), max(gap[1] for gap in best), max(gap[2] for gap in best))]
    return best


def to_candidates(group: Group, rows: Sequence[Sequence[Any]]) -> list[Candidate]:
    """For the planner; only special specs are read."""
    special = specs_of([as_uuid(row[0]) for row in rows if row[-1].startswith(SPECIAL)])
    candidates = []
    for pk, tenant, user, is_urgent, priority, created_at, may_reserve, cpu_milli, memory_mib, gpus, _ in rows:
        spec = special.get(as_uuid(pk))
        candidates.append(
            Candidate(
                as_uuid(pk),
                group.name,
                as_uuid(tenant),
                as_uuid(user),
                containers_of(spec) if spec else ((cpu_milli, memory_mib, gpus),),
                bool(is_urgent),
                priority,
                as_seconds(created_at),
                bool(may_reserve),
                frozenset(spec.node_names) if spec else frozenset(),
            )
        )
    return candidates


def candidate_of(run: Run) -> Candidate:
    """One waiting run, with all that its spec says."""
    spec = run.run_spec()
    return Candidate(
        run.pk,
        run.resource_group,
        run.tenant_id,
        run.created_by_id,
        containers_of(spec),
        run.is_urgent,
        run.priority,
        run.created_at.timestamp(),
        node_names=frozenset(spec.node_names),
    )


def specs_of(run_ids: Sequence[UUID]) -> dict[UUID, RunSpec]:
    """The specs of a few runs."""
    found: dict[UUID, RunSpec] = {}
    for start in range(0, len(run_ids), 500):
        rows: Any = Run.objects.filter(pk__in=run_ids[start : start + 500]).values_list("pk", "spec")
        found |= {pk: RunSpec.from_json(spec) for pk, spec in rows}
    return found


def as_uuid(value: UUID | str) -> UUID:
    """SQLite gives text."""
    return value if isinstance(value, UUID) else UUID(value)


def as_seconds(value: datetime | str) -> float:
    """SQLite gives text, in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
