"""The machine that a task asks for: what it may use, and of GPUs how much memory one has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.db.models import QuerySet

from clavier.quotas.gpus import usable
from clavier.quotas.models import Gpu, Node, Usage
from clavier.quotas.requests import BOUNDS
from clavier.quotas.services import DEFAULT_GROUP
from finetune_app.models import FineTuneTask
from finetune_app.shapes import Machine
from runner.contract.run_spec import Resources

#: A profile of MIG devices says how much memory one has: 1g.10gb, 1g.5gb+me.
MIG_MEMORY = re.compile(r"\.(\d+)gb")
MIB_PER_GIB = 1024


def machine_of(task: FineTuneTask) -> Machine:
    """What the task asks for. A program uses one slice or one share; of whole GPUs each process has its own."""
    asked = Resources(**task.resources)
    return Machine(
        memory_mib=asked.memory_mib,
        cpu_cores=asked.cpu_milli / 1000,
        gpus=asked.gpus or int(asked.has_gpu),
        gpu_memory_mib=gpu_memory_mib(asked, task.options) if asked.has_gpu else 0,
    )


def roomiest(machine: Machine, task: FineTuneTask) -> Machine:
    """The machine, with the main memory that the task could ask for at most."""
    return replace(machine, most_memory_mib=most_memory_mib(task.options))


def gpu_memory_mib(asked: Resources, options: Mapping[str, Any]) -> int:
    """Of the smallest GPU or slice that the task may get, or of its share; 0: nothing here says."""
    if asked.gpu_memory_mib:
        return asked.gpu_memory_mib
    nodes = nodes_of(options)
    devices = usable(Gpu.objects.filter(node__in=nodes))
    known = [gpu.memory_mib for gpu in devices if gpu.mig_profile == asked.mig_profile]
    if asked.mig_profile:
        named = MIG_MEMORY.search(asked.mig_profile)
        return min(known, default=int(named[1]) * MIB_PER_GIB if named else 0)
    # A cluster chooses among GPUs of its own, which may be larger or smaller than those that are listed.
    has_cluster = nodes.filter(assigns_gpus=True, gpu_devices=None).exists()
    return 0 if has_cluster else min(known, default=0)


def most_memory_mib(options: Mapping[str, Any]) -> int:
    """Main memory that one container could get: of the largest node, within the limit of the group."""
    nodes = list(nodes_of(options).select_related("resource_group"))
    bounds = [BOUNDS["memory_mib"][1]]
    caps = Usage.objects.filter(scope="node", scope_id__in=[node.pk for node in nodes], resource="memory_mib")
    known = list(caps.values_list("cap", flat=True))
    if nodes and len(known) == len(nodes):
        bounds.append(max(known))
    bounds += [limits["memory_mib"] for node in nodes if (limits := node.resource_group.run_limits).get("memory_mib")]
    return min(bounds)


def nodes_of(options: Mapping[str, Any]) -> QuerySet[Node]:
    """The nodes that a task may get."""
    nodes = Node.objects.filter(resource_group__name=options.get("resource_group") or DEFAULT_GROUP)
    return nodes.filter(name__in=options["node_names"]) if options.get("node_names") else nodes
