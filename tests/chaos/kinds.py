"""What the jobs of a campaign are: most are plain, some have two ranks or GPUs, are stopped, or make room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Kind:
    """``ending``: what its run must end as. ``waits``: for a word of the campaign before its last step.

    ``ranks`` 0: a program of the platform's own, which keeps no journal. ``is_borrower``: of a tenant that has no share
    of the node, so it has to make room.
    """

    name: str
    ending: Literal["COMPLETED", "STOPPED"] = "COMPLETED"
    cpu_milli: int = 100
    ranks: int = 1
    gpus: int = 0
    waits: bool = False
    is_borrower: bool = False


PLAIN = Kind("plain")
STOPPED = Kind("stopped", ending="STOPPED", waits=True)
GANG = Kind("gang", ranks=2)
ONE_GPU, TWO_GPUS = Kind("gpu", gpus=1), Kind("gpu", gpus=2)
IMPORT = Kind("import", cpu_milli=500, ranks=0)
#: Two borrowers leave hardly any room for those whose tenant has the share.
BORROWER = Kind("borrower", cpu_milli=450, waits=True, is_borrower=True)

NUM_GPUS = 2
ROUND = 50
#: Number of a job within each fifty -> its kind; all others are plain.
KINDS = (
    dict.fromkeys((0, 1), BORROWER)
    | dict.fromkeys((3, 13, 23, 33), STOPPED)
    | dict.fromkeys((5, 21, 29), GANG)
    | dict.fromkeys((7, 8, 19, 20, 31), ONE_GPU)
    | dict.fromkeys((9, 32), TWO_GPUS)
    | dict.fromkeys((11, 37), IMPORT)
)


def kind_of(number: int) -> Kind:
    """The kind of a job by its number, from 0."""
    return KINDS.get(number % ROUND, PLAIN)


def gpu_names(mark: str) -> list[str]:
    """Ids of the declared GPUs, as a driver would give them."""
    return [f"GPU-{mark}-{number}" for number in range(NUM_GPUS)]
