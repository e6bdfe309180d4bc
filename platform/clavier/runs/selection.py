"""Which of many waiting runs a pass looks at, chosen and put into the order of admission by the database.

One statement joins the waiting runs of a group with what their tenants hold, their nominal shares and what is left of
their caps, and returns the first few in the order of admission. So a pass costs the same however many runs wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import connection
from django.utils import timezone

from clavier.core import sql
from clavier.core.sql import prepared
from clavier.runs.demand import SPECIAL, containers_of
from clavier.runs.models import Run
from clavier.runs.placing import NOTHING, Amounts, fits, total
from clavier.runs.planner import UNLIMITED, Candidate, End, Group
from runner.contract.run_spec import RunSpec

RESERVE_AFTER = timedelta(minutes=10)
#: Runs that fit, read at once; a pass with more admissions than that reads again.
FIRST = 384
#: Runs that do not fit, of which one may hold nodes.
BLOCKED = 16
#: Runs within their tenant's share that do not fit, for which room may be made.
CLAIMANTS = 64
#: More different gaps than that are asked for by their largest parts only.
MAX_GAPS = 40

COUNTED = ("cpu_milli", "memory_mib", "gpus")

#: What each tenant of a group holds, and whether some of it may be asked to leave. The states stand in it as they do in
#: the partial index that covers it.
HELD = """
    SELECT tenant_id, CAST(SUM(cpu_milli) AS BIGINT) AS cpu_milli, CAST(SUM(memory_mib) AS BIGINT) AS memory_mib,
           CAST(SUM(gpus) AS BIGINT) AS gpus, MAX(CASE WHEN preemptible THEN 1 ELSE 0 END) AS preemptible
    FROM runs_run
    WHERE state IN ('PREPARING', 'RUNNING', 'STOPPING') AND resource_group = %(group)s
    GROUP BY tenant_id
"""
#: What is worked out once a tenant stands in ``owner``, so that a waiting run costs one look at it and comparisons.
#: Conditions on runs stand within CASE: PostgreSQL takes that for half of the rows and joins by hashing, where it would
#: multiply the odds of each comparison, expect one row, and loop.
WAITING = """
WITH held AS MATERIALIZED ({held}), allowed AS MATERIALIZED (
    SELECT scope_id,
           MIN(CASE resource WHEN 'running_runs' THEN cap - used END) AS runs,
           MIN(CASE resource WHEN 'cpu_milli' THEN cap - used END) AS cpu_milli,
           MIN(CASE resource WHEN 'memory_mib' THEN cap - used END) AS memory_mib,
           MIN(CASE resource WHEN 'gpus' THEN cap - used END) AS gpus
    FROM quotas_usage WHERE scope IN ('tenant', 'user') GROUP BY scope_id
), owner AS MATERIALIZED (
    SELECT tenant.id, {dominant_share} AS dominant_share, COALESCE(share.may_borrow, TRUE) AS may_borrow,
           COALESCE(share.cpu_milli - COALESCE(held.cpu_milli, 0), -1) AS nominal_cpu_milli,
           COALESCE(share.memory_mib - COALESCE(held.memory_mib, 0), -1) AS nominal_memory_mib,
           COALESCE(share.gpus - COALESCE(held.gpus, 0), -1) AS nominal_gpus,
           COALESCE(allowed.cpu_milli, {unlimited}) AS cpu_milli,
           COALESCE(allowed.memory_mib, {unlimited}) AS memory_mib,
           COALESCE(allowed.gpus, {unlimited}) AS gpus
    FROM accounts_tenant AS tenant
    LEFT JOIN held ON held.tenant_id = tenant.id
    LEFT JOIN quotas_tenantshare AS share
           ON share.tenant_id = tenant.id AND share.resource_group_id = %(group_id)s
    LEFT JOIN allowed ON allowed.scope_id = tenant.id
    WHERE COALESCE(allowed.runs, 1) >= 1
), waiting AS (
    SELECT run.id, run.tenant_id, run.created_by_id, run.is_urgent, run.priority, run.created_at,
           CASE WHEN {old} THEN 1 ELSE 0 END AS may_reserve, run.cpu_milli, run.memory_mib, run.gpus, run.shape,
           CASE WHEN {nominal} THEN -1.0 ELSE owner.dominant_share END AS standing,
           CASE WHEN {fits} THEN 1 ELSE 0 END AS is_fit
    FROM runs_run AS run
    JOIN owner ON owner.id = run.tenant_id
    LEFT JOIN allowed AS person ON person.scope_id = run.created_by_id
    WHERE run.state = 'PENDING' AND run.resource_group = %(group)s
      AND (run.not_before IS NULL OR run.not_before <= %(now)s)
      AND (CASE WHEN {chosen} THEN TRUE ELSE FALSE END)
      AND (CASE WHEN run.cpu_milli <= owner.cpu_milli AND run.memory_mib <= owner.memory_mib AND run.gpus <= owner.gpus
                 AND (owner.may_borrow = TRUE OR {nominal}) THEN TRUE ELSE FALSE END)
      AND (CASE WHEN person.scope_id IS NULL THEN TRUE
                WHEN COALESCE(person.runs, 1) >= 1 AND COALESCE(person.cpu_milli, run.cpu_milli) >= run.cpu_milli
                 AND COALESCE(person.memory_mib, run.memory_mib) >= run.memory_mib
                 AND COALESCE(person.gpus, run.gpus) >= run.gpus THEN TRUE ELSE FALSE END)
)
SELECT id, tenant_id, created_by_id, is_urgent, priority, created_at, may_reserve, cpu_milli, memory_mib, gpus, shape,
       is_fit
FROM {ranked}
ORDER BY is_fit DESC, is_urgent DESC, standing, priority DESC, created_at, id
LIMIT {limit}
"""
#: A few of each tenant: all others of it come later in the order, whatever the tenant gets meanwhile.
EACH = """(
    SELECT waiting.*, ROW_NUMBER() OVER (
        PARTITION BY tenant_id ORDER BY is_urgent DESC, standing, priority DESC, created_at, id
    ) AS place FROM waiting
) AS ranked WHERE place <= {each}"""
LEAST = """
    SELECT MIN(cpu_milli), MIN(memory_mib), MIN(gpus) FROM runs_run WHERE state = 'PENDING' AND resource_group = %s
"""
NOMINAL = (
    "run.cpu_milli <= owner.nominal_cpu_milli AND run.memory_mib <= owner.nominal_memory_mib"
    " AND run.gpus <= owner.nominal_gpus"
)
OLD = "run.queued_at <= %(old)s AND (run.not_before IS NULL OR run.not_before <= %(old)s)"


@dataclass(slots=True)
class Selection:
    """Candidates, and behind which of them there may be others that were not read: a plan is right up to there."""

    candidates: list[Candidate] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    def add(self, other: Selection) -> None:
        """What was read of another group, or by another question."""
        known = {candidate.id for candidate in self.candidates}
        self.candidates += [candidate for candidate in other.candidates if candidate.id not in known]
        self.ends += other.ends


def select(question: Question, *, first: int = FIRST, each: int | None = None, has_claims: bool = False) -> Selection:
    """The runs of a group that fit somewhere, and of those that do not the first that may hold nodes for themselves.

    ``first``: at most so many; ``each``: of one tenant. ``has_claims``: also the first that may want borrowed room
    back. Nothing is read beside one statement while nothing fits and nobody can want room back. Asked again after a
    plan over what was read, it gives what fits beside what that plan holds.
    """
    group = question.group
    most = max(BLOCKED, 2 * len(group.passed))
    blocked: list[Candidate] | None = None
    if each is None and not group.has_head:
        fitting, blocked = question.ask_both(first, most)
    else:
        fitting = question.ask("{fits}", first, each=each)
    selection = Selection(fitting)
    if len(fitting) == first:
        selection.ends.append(End(fitting[-1]))
    if each is not None:
        number = Counter(candidate.tenant for candidate in fitting)
        last = {candidate.tenant: candidate for candidate in fitting}
        cut = [last[tenant] for tenant, count in number.items() if count == each]
        least = least_wanted(group) if cut else NOTHING
        selection.ends += [End(candidate, least) for candidate in cut]
    if fitting and not group.has_head:
        if blocked is None:
            blocked = question.ask(f"NOT {{fits}} AND {OLD}", most)
        ends = [End(blocked[-1], is_of_head=True)] if len(blocked) == most else []
        selection.add(Selection(blocked, ends))
    if has_claims:
        selection.add(Selection(question.ask(f"NOT {{fits}} AND {NOMINAL}", CLAIMANTS)))
    return selection


class Question:
    """The statement over one group, at one moment. ``shut``: owners that start nothing now; ``refused``: runs."""

    def __init__(
        self, group: Group, now: datetime, shut: Collection[UUID] = (), refused: Collection[UUID] = ()
    ) -> None:
        self.group, self.now, self.shut, self.refused = group, now, shut, refused

    def ask(self, chosen: str, limit: int, *, each: int | None = None) -> list[Candidate]:
        """The first runs for which ``chosen`` holds; ``{fits}`` in it: could be placed now. ``each``: of one tenant."""
        return to_candidates(self.group, self.rows(chosen, limit, each))

    def ask_both(self, first: int, most: int) -> tuple[list[Candidate], list[Candidate] | None]:
        """The first runs that fit, and the first that do not and may hold nodes; None: so many fit that none was read.

        One statement, since it is dear to look at every waiting run.
        """
        rows = self.rows(f"({{fits}} OR ({OLD}))", first + most, None)
        number = sum(row[-1] for row in rows)
        fitting = to_candidates(self.group, rows[: min(number, first)])
        return fitting, to_candidates(self.group, rows[number : number + most]) if number <= first else None

    def rows(self, chosen: str, limit: int, each: int | None) -> list[tuple[Any, ...]]:
        """What the statement answers."""
        parameters: dict[str, Any] = {
            "group": self.group.name,
            "group_id": prepared(self.group.id),
            "now": prepared(self.now),
            "old": prepared(self.now - RESERVE_AFTER),
        }
        fits = fits_somewhere(self.group, parameters)
        where = chosen.replace("{fits}", fits)
        where += without("run.id", "refused", self.refused, parameters)
        where += without("run.tenant_id", "shut", self.shut, parameters)
        where += without("run.created_by_id", "shut", self.shut, parameters)
        statement = WAITING.format(
            held=HELD,
            dominant_share=share_of_held(self.group, parameters),
            chosen=where,
            fits=fits,
            old=OLD,
            nominal=NOMINAL,
            ranked="waiting" if each is None else EACH.format(each=int(each)),
            limit=int(limit),
            unlimited=UNLIMITED,
        )
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found


def without(column: str, name: str, values: Collection[UUID | str], parameters: dict[str, Any]) -> str:
    """A further condition that the column has none of the values."""
    if not values:
        return ""
    names = [f"{name}_{number}" for number in range(len(values))]
    parameters.update(zip(names, map(prepared, values), strict=True))
    return f" AND {column} NOT IN ({', '.join(f'%({name})s' for name in names)})"


def least_wanted(group: Group) -> Amounts:
    """No waiting run of the group wants less of anything."""
    ((cpu_milli, memory_mib, gpus),) = sql.select(LEAST, group.name)
    return (cpu_milli or 0, memory_mib or 0, gpus or 0)


def share_of_held(group: Group, parameters: dict[str, Any]) -> str:
    """``dominant_share`` of what a tenant holds: a resource that the group has none of is nobody's."""
    parts = ["0.0"]
    for name, whole in zip(COUNTED, group.capacity, strict=True):
        if whole:
            parameters[f"whole_{name}"] = float(whole)
            parts.append(f"COALESCE(CAST(held.{name} AS FLOAT), 0.0) / %(whole_{name})s")
    greatest = "GREATEST" if connection.vendor == "postgresql" else "MAX"
    return f"{greatest}({', '.join(parts)})" if len(parts) > 1 else parts[0]


def fits_somewhere(group: Group, parameters: dict[str, Any]) -> str:
    """A condition that every run meets which could be placed now, and few others."""
    free = [node.free for node in group.nodes if not node.is_held]
    gaps = largest_gaps(free)
    several = total(gap for gap in free if min(gap) >= 0)
    alternatives = []
    for number, (gap, containers) in enumerate([*((gap, "= 1") for gap in gaps), (several, "> 1")]):
        parts = [f"run.num_containers {containers}"]
        for name, room in zip(COUNTED, gap, strict=True):
            parameters[f"gap_{number}_{name}"] = min(room, UNLIMITED)
            parts.append(f"run.{name} <= %(gap_{number}_{name})s")
        alternatives.append(f"({' AND '.join(parts)})")
    return f"(({' OR '.join(alternatives)}){without('run.shape', 'shape', group.hopeless, parameters)})"


def largest_gaps(gaps: Iterable[Amounts]) -> list[Amounts]:
    """Those that no other contains; one that contains all when there are very many."""
    distinct = {gap for gap in gaps if gap[0] > 0 and gap[1] > 0 and gap[2] >= 0}
    best = sorted(gap for gap in distinct if not any(gap != other and fits(gap, other) for other in distinct))
    if len(best) > MAX_GAPS:
        return [(max(gap[0] for gap in best), max(gap[1] for gap in best), max(gap[2] for gap in best))]
    return best


def to_candidates(group: Group, rows: Sequence[Sequence[Any]]) -> list[Candidate]:
    """For the planner; only special specs are read."""
    special = specs_of([as_uuid(row[0]) for row in rows if row[-2].startswith(SPECIAL)])
    candidates = []
    for pk, tenant, user, is_urgent, priority, created_at, may_reserve, cpu_milli, memory_mib, gpus, shape, _ in rows:
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
                shape,
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
        may_reserve=timezone.now() - max(run.queued_at, run.not_before or run.queued_at) > RESERVE_AFTER,
        node_names=frozenset(spec.node_names),
        shape=run.shape,
    )


def specs_of(run_ids: Sequence[UUID]) -> dict[UUID, RunSpec]:
    """The specs of a few runs."""
    found: dict[UUID, RunSpec] = {}
    for start in range(0, len(run_ids), 500):
        rows: Any = Run.objects.filter(pk__in=run_ids[start : start + 500]).values_list("pk", "spec")
        found |= {pk: RunSpec.from_json(spec) for pk, spec in rows}
    return found


@lru_cache(maxsize=100_000)
def as_uuid(value: UUID | str) -> UUID:
    """SQLite gives text. Passes see the same owners and nodes again and again."""
    return value if isinstance(value, UUID) else UUID(value)


def as_seconds(value: datetime | str) -> float:
    """SQLite gives text, in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
