"""Why a run waits for shares of GPUs, MIG devices, or GPUs that others share: what the planner does not count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from uuid import UUID

from clavier.quotas.capacity import devices_by_node, is_free
from clavier.quotas.gpus import choose, is_share
from clavier.quotas.models import Gpu, Node, Usage
from clavier.quotas.services import amounts_of
from clavier.quotas.shortage import Shortage
from clavier.runs.models import Run
from clavier.runs.wording import left_of, number_of, say
from runner.contract.run_spec import Resources

#: What stands in the way, why, and what would let the run start.
Hindrance = tuple[Literal["tenant_cap", "user_cap", "room"], str, str]


def gpu_obstacles(run: Run) -> Iterator[Hindrance]:
    """The caps of shares and slices, then the devices themselves."""
    spec = run.run_spec()
    wanted = [role.resources for role in spec.containers() if role.resources.has_gpu]
    if not wanted:
        return
    for word, scope, scope_id in (
        ("tenant_cap", "tenant", run.tenant_id),
        ("user_cap", "user", run.created_by_id),
    ):
        yield from cap_of_parts(word, scope, scope_id, wanted)  # type: ignore[arg-type]
    nodes = list(Node.objects.filter(resource_group__name=run.resource_group, is_schedulable=True))
    nodes = [node for node in nodes if not spec.node_names or node.name in spec.node_names]
    if any(node.assigns_gpus for node in nodes):
        return
    devices = devices_by_node(nodes)
    for resources in wanted:
        if all(isinstance(choose(devices.get(node.pk, []), resources), Shortage) for node in nodes):
            everywhere = [gpu for found in devices.values() for gpu in found]
            yield "room", why_none(run.resource_group, everywhere, resources), say("when_gpus")
            return


def cap_of_parts(
    word: Literal["tenant_cap", "user_cap"], scope: str, scope_id: UUID, wanted: list[Resources]
) -> Iterator[Hindrance]:
    """A cap of shares of GPUs or of MIG devices is in the way."""
    for row in Usage.objects.filter(scope=scope, scope_id=scope_id, resource__in=("vgpus", "mig_devices")):
        amount = sum(amounts_of(resources)[row.resource] for resources in wanted)
        if amount and row.used + amount > row.cap:
            why = left_of(row.resource, row.cap - row.used, row.cap, amount, say(f"left_for_{scope}"))
            lacking = row.used + amount - row.cap
            is_never = amount > row.cap
            yield (
                word,
                why,
                say("more_quota") if is_never else say("when_freed", amount=number_of(row.resource, lacking)),
            )


def why_none(group: str, gpus: list[Gpu], resources: Resources) -> str:
    """What the group's devices lack for one container."""
    if is_share(resources):
        memory = f"{resources.gpu_memory_mib / 1024:.4g}"
        return say("no_share", group=group, percent=resources.gpu_cores_percent, memory=memory)
    kind = [gpu for gpu in gpus if gpu.mig_profile == resources.mig_profile]
    resource, wanted = ("mig_devices", resources.mig_devices) if resources.mig_profile else ("gpus", resources.gpus)
    return left_of(resource, sum(map(is_free, kind)), len(kind), wanted, say("left_in_group", group=group))
