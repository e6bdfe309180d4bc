"""Why a run can not start now, in words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

OWNERS = {"tenant": "your tenant", "user": "you"}
NAMES = {
    "running_runs": "running runs",
    "cpu_milli": "CPU cores",
    "memory_mib": "GiB of memory",
    "gpus": "GPUs",
    "vgpus": "shares of GPUs",
    "mig_devices": "MIG devices",
}
UNITS = {"cpu_milli": 1000, "memory_mib": 1024}


@dataclass(frozen=True, slots=True)
class Shortage:
    """The first thing that stands in the way of a reservation.

    ``scope``: ``tenant``, ``user`` or ``node`` (then ``node`` is its name). ``resource``: one of RESOURCES, or
    ``window`` when the quota of the tenant or user is not valid now (then ``opens_at``: from when, None: never again).
    ``detail``: what exactly was looked for, such as a MIG profile.
    """

    scope: str
    resource: str
    cap: int
    used: int
    wanted: int
    node: str = ""
    detail: str = ""
    opens_at: datetime | None = None

    @property
    def can_ever_fit(self) -> bool:
        """False: even with nothing else running it would not fit."""
        return self.wanted <= self.cap if self.resource != "window" else self.opens_at is not None

    @property
    def owner(self) -> str:
        """Whose cap it is."""
        return OWNERS.get(self.scope) or (f"node {self.node}" if self.node else "this node")

    @property
    def remedy(self) -> str:
        """What would let it fit."""
        if self.resource == "window":
            return "It starts by itself then." if self.opens_at else "Ask an operator for a new quota."
        if not self.can_ever_fit:
            return "Ask for less, or ask an operator for more."
        missing = in_unit(self.resource, self.wanted - max(0, self.cap - self.used))
        name = NAMES[self.resource]
        return f"It starts when {missing} more {name} are free: when runs that hold them end."

    def __str__(self) -> str:
        if self.resource == "window":
            whose = {"tenant": "The quota of your tenant", "user": "Your quota"}[self.scope]
            if self.opens_at:
                return f"{whose} is valid from {self.opens_at:%Y-%m-%d %H:%M} UTC; no run starts before"
            return f"{whose} has ended; no new run starts"
        left = max(0, self.cap - self.used)
        name = NAMES[self.resource] if self.resource != "running_runs" else "runs"
        return (
            f"{in_unit(self.resource, left)} of {in_unit(self.resource, self.cap)} {name}{self.detail} left for "
            f"{self.owner}, {in_unit(self.resource, self.wanted)} requested"
        )


def in_unit(resource: str, amount: int) -> str:
    """An amount in the unit that people read: cores, GiB or a count."""
    return f"{amount / UNITS.get(resource, 1):.4g}"
