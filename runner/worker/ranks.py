"""What is known of an attempt's containers, taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clavier.runs.models import Attempt
from runner.executors.base import Observation
from runner.worker.engines import Engine, engine_of

#: Ranks that end within so many seconds of the first end for the same reason.
TOGETHER_S = 5.0


@dataclass(frozen=True, slots=True)
class Rank:
    """One container: its name, where it is, and what its engine says of it (None: the engine does not know it)."""

    number: int
    name: str
    engine: Engine
    seen: Observation | None = None

    @property
    def has_exited(self) -> bool:
        """It was there and has ended."""
        return self.seen is not None and self.seen.state == "exited"

    @property
    def is_alive(self) -> bool:
        """It is there and has not ended."""
        return self.seen is not None and self.seen.state != "exited"

    @property
    def ended_at(self) -> float:
        """Seconds since the epoch; what nobody knows counts as last."""
        known = self.seen.ended_at if self.seen is not None else None
        return known if known is not None else float("inf")

    @property
    def ended_well(self) -> bool:
        """By itself, with 0."""
        return self.seen is not None and self.seen.cause == "exit" and self.seen.exit_code == 0


def ranks_of(attempt: Attempt, observed: Mapping[Engine, Mapping[str, Observation]]) -> list[Rank]:
    """All containers of an attempt; ``observed`` holds the engines that answered."""
    nodes = [attempt.node, *(peer.node for peer in attempt.peers.all())]
    names = [name_of(attempt, number) for number in range(len(nodes))]
    return [
        Rank(number, name, engine_of(node), observed.get(engine_of(node), {}).get(name))
        for number, (name, node) in enumerate(zip(names, nodes, strict=True))
    ]


def name_of(attempt: Attempt, rank: int) -> str:
    """What executors know a container as."""
    return f"{attempt.pk}.{rank}" if rank else str(attempt.pk)


def decisive(ranks: Sequence[Rank]) -> Rank:
    """The container whose end decides: of those that failed the one that nobody asked to stop and that ended first.

    Of those that ended at about the same time what was lost comes before what failed, for the others fail when a peer
    is gone; one that was killed long after is a consequence. All ended well: rank 0.
    """
    failed = [rank for rank in ranks if rank.has_exited and not rank.ended_well]
    if not failed:
        return ranks[0]
    first = min(rank.ended_at for rank in failed)

    def order(rank: Rank) -> tuple[bool, bool, bool, float, int]:
        assert rank.seen is not None
        was_killed = rank.seen.cause == "lost" or (rank.seen.cause == "exit" and rank.seen.exit_code in (137, 143))
        is_late = rank.ended_at > first + TOGETHER_S
        return (rank.seen.cause == "stopped", is_late, not was_killed, rank.ended_at, rank.number)

    return min(failed, key=order)
