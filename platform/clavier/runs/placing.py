"""Where the containers of a run go: all of them, or nowhere. Pure.

One container goes to the node that it fills up most, so that large gaps stay whole. Of a gang the nodes that take most
of its ranks come first, so that it is spread over few. Without a network of their own that several engines share, its
ranks stay on the nodes of one engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

#: cpu_milli, memory_mib and gpus.
Amounts = tuple[int, int, int]
NOTHING: Amounts = (0, 0, 0)
#: Steps of the search for one gang. It is complete below that; a gang that needs more waits for an easier place.
MAX_STEPS = 5_000


@dataclass(slots=True)
class NodeRoom:
    """A node now. ``reach``: nodes with the same word can hold ranks of one gang.

    ``leaving``: what runs that were asked to make room still hold. ``is_held``: kept free for somebody.
    """

    id: UUID
    name: str
    free: Amounts
    capacity: Amounts
    reach: str = ""
    leaving: Amounts = NOTHING
    is_held: bool = False

    @property
    def coming(self) -> Amounts:
        """Free once those that leave are gone."""
        return plus(self.free, self.leaving)

    def take(self, amounts: Amounts) -> None:
        """A container starts here."""
        self.free = minus(self.free, amounts)

    def with_free(self, free: Amounts) -> NodeRoom:
        """The same node, were so much free."""
        return replace(self, free=free, leaving=NOTHING, is_held=False)


def place(
    containers: tuple[Amounts, ...], nodes: Iterable[NodeRoom], *, keep_order: bool = False
) -> list[NodeRoom] | None:
    """A node for each rank, or None. ``keep_order``: earlier nodes are preferred over later ones."""
    if len(containers) == 1 and not keep_order:
        best = tightest(containers[0], nodes)
        return None if best is None else [best]
    for reach in reaches(containers, nodes, keep_order):
        found = search(containers, reach)
        if found is not None:
            return found
    return None


def tightest(amounts: Amounts, nodes: Iterable[NodeRoom]) -> NodeRoom | None:
    """Of the nodes that it fits on, the one with the least left afterwards: GPUs first, so that a run without any keeps
    away from them; None: it fits on none.
    """
    cpu_milli, memory_mib, gpus = amounts
    best: NodeRoom | None = None
    least: tuple[int, int, int, str] = (0, 0, 0, "")
    for node in nodes:
        cpu_left, memory_left, gpus_left = node.free
        if cpu_milli > cpu_left or memory_mib > memory_left or gpus > gpus_left:
            continue
        left = (gpus_left, cpu_left, memory_left, node.name)
        if best is None or left < least:
            best, least = node, left
    return best


def reaches(containers: tuple[Amounts, ...], nodes: Iterable[NodeRoom], keep_order: bool) -> list[list[NodeRoom]]:
    """The nodes by reach, each list in the order in which they are filled."""
    largest = max(containers, key=weight)
    ordered = nodes if keep_order else sorted(nodes, key=lambda node: (-how_many(largest, node.free), node.name))
    by_reach: dict[str, list[NodeRoom]] = {}
    for node in ordered:
        by_reach.setdefault(node.reach, []).append(node)
    return list(by_reach.values())


def search(containers: tuple[Amounts, ...], nodes: Sequence[NodeRoom]) -> list[NodeRoom] | None:
    """Largest first, each equal container no earlier than the one before it; back again where it does not work out."""
    ranks = sorted(range(len(containers)), key=lambda rank: (*weight(containers[rank]), -rank), reverse=True)
    free = [node.free for node in nodes]
    chosen: list[int] = []
    steps = start = 0
    while len(chosen) < len(ranks):
        amounts = containers[ranks[len(chosen)]]
        at = next((index for index in range(start, len(nodes)) if fits(amounts, free[index])), None)
        steps += 1
        if at is not None:
            free[at] = minus(free[at], amounts)
            chosen.append(at)
            is_same = len(chosen) < len(ranks) and containers[ranks[len(chosen)]] == amounts
            start = at if is_same else 0
        elif not chosen or steps > MAX_STEPS:
            return None
        else:
            last = chosen.pop()
            free[last] = plus(free[last], containers[ranks[len(chosen)]])
            start = last + 1
    found = dict(zip(ranks, chosen, strict=True))
    return [nodes[found[rank]] for rank in range(len(containers))]


def fits(amounts: Amounts, room: Amounts) -> bool:
    """Of every resource there is enough."""
    return amounts[0] <= room[0] and amounts[1] <= room[1] and amounts[2] <= room[2]


def missing(amounts: Amounts, free: Amounts, capacity: Amounts) -> float:
    """The largest part of a node that has yet to become free before the container fits; 0: it fits."""
    return max(
        max(0, amount - room) / whole if whole else 0.0
        for amount, room, whole in zip(amounts, free, capacity, strict=True)
    )


def weight(amounts: Amounts) -> Amounts:
    """GPUs, cores, memory: what is hardest to place comes first."""
    return (amounts[2], amounts[0], amounts[1])


def how_many(amounts: Amounts, free: Amounts) -> int:
    """How many such containers the room takes."""
    return min((room // amount for amount, room in zip(amounts, free, strict=True) if amount), default=0)


def plus(one: Amounts, other: Amounts) -> Amounts:
    """The sum, resource by resource."""
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def minus(one: Amounts, other: Amounts) -> Amounts:
    """The difference, resource by resource."""
    return (one[0] - other[0], one[1] - other[1], one[2] - other[2])


def total(amounts: Iterable[Amounts]) -> Amounts:
    """The sum over many."""
    cpu_milli = memory_mib = gpus = 0
    for one in amounts:
        cpu_milli, memory_mib, gpus = cpu_milli + one[0], memory_mib + one[1], gpus + one[2]
    return (cpu_milli, memory_mib, gpus)
