"""When which part was away, and the two times that are measured: in all, and while what they need was in service."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

Span = tuple[float, float]
SAMPLE_EVERY_S = 0.1


@dataclass
class Timeline:
    """``away``: spans in which a server was down or the reconciler frozen. ``died_at``: deaths of the reconciler.

    ``leads``: (epoch, renewed at) of the reconciler's lease as sampled, in order. Seconds since the epoch.
    """

    away: list[Span] = field(default_factory=list)
    died_at: list[float] = field(default_factory=list)
    leads: list[tuple[int, float]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """A server is away."""
        began = time.time()
        yield
        self.away.append((began, time.time()))

    def note(self, lead: tuple[int, float] | None) -> None:
        """A sample of the lease."""
        if lead is not None and (not self.leads or self.leads[-1] != lead):
            self.leads.append(lead)

    def adopted_at(self, died_at: float) -> float | None:
        """When the successor renewed its lease: it has looked at all runs by then. None: never."""
        later = [lead for lead in self.leads if lead[1] > died_at]
        return next((second[1] for first, second in pairwise(later) if first[0] == second[0]), None)

    def adoptions(self) -> list[float]:
        """From each death of the reconciler to its successor."""
        return [at - died_at for died_at in self.died_at if (at := self.adopted_at(died_at)) is not None]

    def adoptions_in_service(self) -> list[float]:
        """The same, but from the moment on at which all that it needs was there again."""
        found = []
        for died_at in self.died_at:
            at = self.adopted_at(died_at)
            if at is not None:
                back = [until for since, until in self.away if since < at and died_at < until < at]
                found.append(at - max(back, default=died_at))
        return found

    def in_service(self, since: float, until: float) -> float:
        """Seconds of a span in which the servers were there and a reconciler led."""
        gone = [*self.away, *((at, self.adopted_at(at) or float("inf")) for at in self.died_at)]
        found, reached = 0.0, since
        for begin, end in sorted(gone):
            if end > reached and begin < until:
                found += max(0.0, begin - reached)
                reached = end
        return found + max(0.0, until - reached)


class Sampler(threading.Thread):
    """Samples the lease, and how many processes want a core."""

    def __init__(self, timeline: Timeline, look: Callable[[], tuple[int, float] | None]) -> None:
        super().__init__(name="sampler", daemon=True)
        self.timeline, self.look = timeline, look
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(SAMPLE_EVERY_S):
            self.timeline.note(self.look())
            self.timeline.loads.append(os.getloadavg()[0] / (os.cpu_count() or 1))

    def stop(self) -> None:
        """No more samples."""
        self.is_over.set()
        self.join()
