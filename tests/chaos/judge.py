"""What the jobs wrote outside of the platform, held against what the platform says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.chaos.job import journal_name
from tests.chaos.kinds import PLAIN, Kind

NO_KINDS: Mapping[str, Kind] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Told:
    """What the platform says of one job.

    ``left_at``: when its last program ended, as its executor knows; ``ended_at``: when its row said so.
    ``preempted``: attempts that made room for others.
    """

    state: str
    attempts: int
    left_at: float | None = None
    ended_at: float | None = None
    message: str = ""
    preempted: int = 0


@dataclass
class Judgement:
    """Jobs that went wrong, by how; every list holds sentences."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    overlapping: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


FINAL = ("COMPLETED", "FAILED", "STOPPED")


#: How long after its row says STOPPED a program may still say something: its line was on its way.
LAST_WORDS_S = 1.0


def judge(journals: Path, told: dict[str, Told | None], steps: int, jobs: Mapping[str, Kind] = NO_KINDS) -> Judgement:
    """``told``: job -> what the platform says, None when it knows nothing of it. ``jobs``: those that are not plain."""
    found = Judgement()
    for name, row in told.items():
        kind = jobs.get(name, PLAIN)
        if row is None:
            found.lost.append(f"{name} was accepted and is gone")
            continue
        if row.state not in FINAL:
            found.stuck.append(f"{name} is {row.state} in attempt {row.attempts}")
            continue
        if row.state != kind.ending:
            found.lost.append(f"{name} is {row.state}: {row.message}")
        for rank in range(kind.ranks):
            who = f"rank {rank} of {name}" if rank else name
            events = read_journal(journals / name / journal_name(str(rank)))
            if kind.ending == "STOPPED":
                found.duplicated += [f"{who}: {wrong}" for wrong in what_went_on(events, row)]
            else:
                found.lost += [f"{who}: {wrong}" for wrong in what_is_missing(events, 0 if rank else steps)]
            found.duplicated += [f"{who}: {wrong}" for wrong in what_came_twice(events, row.attempts)]
            found.overlapping += [f"{who}: {wrong}" for wrong in what_overlapped(events)]
            found.overlapping += [f"{who}: {wrong}" for wrong in wrong_gpus(events, kind)]
    return found


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Every event in the order of writing. A torn line can not be: each is one write, and is synced."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def what_is_missing(events: list[dict[str, Any]], steps: int) -> list[str]:
    """Work that was never done although the run is final. A program may die between sealing a step and saying so."""
    if not any(event["event"] == "end" for event in events):
        return ["no program of it ever reached its end"]
    done = {event["step"] for event in events if event["event"] == "sealed"}
    resumed = [event["step"] for event in events if event["event"] == "start"]
    missing = [step for step in range(1, steps + 1) if step not in done and not any(step <= at for at in resumed)]
    return [f"steps {missing} were never done"] if missing else []


def what_went_on(events: list[dict[str, Any]], row: Told) -> list[str]:
    """A stopped run whose program ended by itself, or said something after its row had said STOPPED."""
    wrong = ["its program reached its end" for event in events if event["event"] == "end"]
    over_at = (row.ended_at or 0.0) + LAST_WORDS_S
    late = [event for event in events if event["at"] > over_at]
    return wrong + [f"wrote {event['event']!r} {event['at'] - over_at:.1f} s after it was stopped" for event in late]


def wrong_gpus(events: list[dict[str, Any]], kind: Kind) -> list[str]:
    """A GPU that another program held, or not as many as were asked for."""
    wrong = [f"GPU {event['gpus']} was held by another program" for event in events if event["event"] == "gpu_overlap"]
    given = [event.get("gpus", []) for event in events if event["event"] == "start"]
    return wrong + [f"got the GPUs {gpus}, not {kind.gpus}" for gpus in given if len(set(gpus)) != kind.gpus]


def what_came_twice(events: list[dict[str, Any]], attempts: int) -> list[str]:
    """A program started more often than there were attempts, or work that had been sealed and was done again."""
    wrong, sealed = [], 0
    starts = sum(event["event"] == "start" for event in events)
    if starts > attempts:
        wrong.append(f"{starts} programs were started in {attempts} attempts")
    for event in events:
        if event["event"] == "start" and event["step"] < sealed:
            wrong.append(f"went on from step {event['step']}, though {sealed} was sealed")
        if event["event"] == "sealed":
            if event["step"] <= sealed:
                wrong.append(f"did step {event['step']} again")
            sealed = max(sealed, event["step"])
    return wrong


def what_overlapped(events: list[dict[str, Any]]) -> list[str]:
    """Two programs of one job at the same time: the lock was held, or an earlier one wrote after a later had begun."""
    wrong = ["a program began while another one held the lock" for event in events if event["event"] == "overlap"]
    current = None
    for event in events:
        if event["event"] == "start":
            current = event["who"]
        elif event["event"] not in ("overlap", "gpu_overlap") and event["who"] != current:
            wrong.append(f"a program wrote {event['event']!r} after a later one had begun")
    return wrong


def p95(values: list[float]) -> float | None:
    """The 95th percentile (nearest rank), None of nothing."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-len(ordered) * 95 // 100) - 1)], 2) if ordered else None
