"""What a run needs, as the scheduler's columns and as the planner's containers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from clavier.runs.placing import Amounts, total
from runner.contract.run_spec import Resources, RunSpec

#: Begins the shape of a run whose columns do not say all: of several containers, or for certain nodes only.
SPECIAL = "+"


def scheduling_columns(spec: RunSpec) -> dict[str, Any]:
    """The columns of a Run by which the database chooses whom a pass looks at."""
    cpu_milli, memory_mib, gpus = total(amounts_of(role.resources) for role in spec.containers())
    return {
        "is_urgent": spec.is_urgent,
        "preemptible": spec.preemptible,
        "num_containers": spec.num_containers,
        "cpu_milli": cpu_milli,
        "memory_mib": memory_mib,
        "gpus": gpus,
        "shape": shape_of(spec),
    }


def shape_of(spec: RunSpec) -> str:
    """Equal for runs that fit into the same places."""
    needs = [[asdict(role.resources) for role in spec.containers()], sorted(spec.node_names)]
    digest = hashlib.sha256(json.dumps(needs, sort_keys=True).encode()).hexdigest()
    return (SPECIAL + digest if spec.num_containers > 1 or spec.node_names else digest)[:32]


def containers_of(spec: RunSpec) -> tuple[Amounts, ...]:
    """What each rank needs."""
    return tuple(amounts_of(role.resources) for role in spec.containers())


def amounts_of(resources: Resources) -> Amounts:
    """What the planner counts of one container. Shares and slices of GPUs are left to the booking itself."""
    return (resources.cpu_milli, resources.memory_mib, resources.gpus)
