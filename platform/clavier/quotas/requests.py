"""What a request may ask for in ``resources``, and whether its resource group could ever give it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from django.db.models import Count

from clavier.core.actor import Actor
from clavier.core.errors import FieldProblem, InvalidFields, Unprocessable, quoted
from clavier.core.sql import select
from clavier.quotas.gpus import choose, is_share, usable
from clavier.quotas.models import AMOUNTS, Gpu, Node, ResourceGroup, Usage
from clavier.quotas.queries import access_group
from clavier.quotas.services import amounts_of
from clavier.quotas.shortage import Shortage
from runner.contract.run_spec import Resources, RunSpec

#: Lowest and highest amount that any request may name.
BOUNDS = {
    "cpu_milli": (100, 1_024_000),
    "memory_mib": (128, 64 * 1024 * 1024),
    "gpus": (0, 64),
    "gpu_cores_percent": (0, 100),
    "gpu_memory_mib": (0, 1024 * 1024),
    "mig_devices": (0, 64),
}
DEFAULTS = Resources(cpu_milli=1000, memory_mib=4096)
ALWAYS = ("cpu_milli", "memory_mib", "gpus")

#: A node whose caps are large enough and, unless a cluster counts its own, whose whole and working GPUs are as many.
ROOM_EMPTY = """
    SELECT 1 FROM quotas_node AS node
    WHERE node.resource_group_id = %s
      AND NOT EXISTS (
          SELECT 1 FROM quotas_usage AS cap
          WHERE cap.scope = 'node' AND cap.scope_id = node.id
            AND cap.cap < CASE cap.resource WHEN 'cpu_milli' THEN %s WHEN 'memory_mib' THEN %s WHEN 'gpus' THEN %s
                               ELSE 0 END
      )
      AND %s <= CASE WHEN node.assigns_gpus THEN 1000000 ELSE (
          SELECT COUNT(*) FROM quotas_gpu AS gpu
          WHERE gpu.node_id = node.id AND gpu.is_healthy AND gpu.is_present AND gpu.mig_profile = ''
            AND NOT EXISTS (SELECT 1 FROM quotas_gpu AS part WHERE part.node_id = node.id
                                                               AND part.parent_uuid = gpu.uuid)
      ) END
    LIMIT 1
"""


def checked_resources(given: Mapping[str, Any], *, resource_group: str = "") -> dict[str, Any]:
    """The fields of ``Resources`` that a request asks for, with the defaults of the group. Raises InvalidFields.

    The three of ALWAYS are always there; those of shares and MIG devices only when they are asked for.
    """
    names = (*BOUNDS, "mig_profile")
    problems = [
        problem_with(name, "unknown_field", f"resources.{name} is none of {', '.join(names)}.")
        for name in given
        if name not in names
    ]
    defaults = default_resources(resource_group, given)
    found: dict[str, Any] = {}
    for name, (lowest, highest) in BOUNDS.items():
        value = given.get(name, defaults.get(name, getattr(DEFAULTS, name)))
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            message = f"resources.{name} {quoted(value)} is no whole number from {lowest} to {highest}."
            problems.append(problem_with(name, "out_of_range", message))
        elif value or name in ALWAYS:
            found[name] = value
    profile = given.get("mig_profile") or ""
    if not isinstance(profile, str) or len(profile) > 20:
        message = f"resources.mig_profile {quoted(profile)} is no profile such as '1g.10gb'."
        problems.append(problem_with("mig_profile", "bad_value", message))
    elif profile:
        found["mig_profile"] = profile
    problems += contradictions(found)
    if problems:
        raise InvalidFields(problems)
    return found


def require_schedulable(*, actor: Actor, spec: RunSpec) -> None:
    """The group is there for the actor, takes runs, allows so much, and has a node for each container when empty.

    Raises NotFound for a group that the actor may not use; Unprocessable with every other problem at once.
    """
    group = access_group(actor, spec.resource_group)
    problems: list[FieldProblem] = []
    if not group.is_active:
        message = f"The resource group {quoted(group.name)} takes no new runs. Choose another, or ask an operator."
        problems.append(FieldProblem("resource_group", "group_inactive", message))
    wanted = {"resources": spec.resources} if not spec.roles else {}
    wanted |= {f"roles.{number}.resources": role.resources for number, role in enumerate(spec.roles)}
    if group.is_active and not spec.node_names and all(has_room_empty(group, one) for one in set(wanted.values())):
        problems = [problem for field, resources in wanted.items() for problem in over_limits(group, resources, field)]
        refuse(problems)
        return
    has_gpu = any(role.resources.has_gpu for role in spec.containers())
    nodes = list(Node.objects.filter(resource_group=group).prefetch_related(*["gpu_devices"] * has_gpu))
    known = {node.name for node in nodes}
    for name in spec.node_names:
        if name not in known:
            message = f"node_names: {quoted(name)} is no node of the resource group {quoted(group.name)}."
            problems.append(FieldProblem("node_names", "not_found", message))
    allowed = [node for node in nodes if not spec.node_names or node.name in spec.node_names]
    for field, resources in wanted.items():
        problems += over_limits(group, resources, field)
        problems += without_node(group, allowed, resources, field)
    refuse(problems)


def refuse(problems: Sequence[FieldProblem]) -> None:
    """Raises Unprocessable when there are any."""
    if problems:
        refusal = Unprocessable(
            " ".join(problem.message for problem in problems), code=problems[0].code, field=problems[0].field
        )
        refusal.problems = tuple(problems)
        raise refusal


def has_room_empty(group: ResourceGroup, resources: Resources) -> bool:
    """A node of the group, were it empty, is certain to take the container. False: one has to look more closely."""
    if is_share(resources) or resources.mig_devices:
        return False
    amounts = (resources.cpu_milli, resources.memory_mib, resources.gpus)
    return bool(select(ROOM_EMPTY, group.pk, *amounts, resources.gpus))


def default_resources(resource_group: str, given: Mapping[str, Any]) -> dict[str, int]:
    """What the group gives where a request says nothing; of GPUs only when it says nothing of any."""
    group = ResourceGroup.objects.filter(name=resource_group).first() if resource_group else None
    defaults: dict[str, int] = dict(group.default_resources) if group else {}
    if any(given.get(name) is not None for name in (*AMOUNTS[2:], "mig_profile")):
        return {name: amount for name, amount in defaults.items() if name in ("cpu_milli", "memory_mib")}
    return defaults


def contradictions(found: Mapping[str, Any]) -> list[FieldProblem]:
    """Whole GPUs, a share and MIG devices exclude each other; a share and a slice need both of their fields."""
    problems = []
    ways = {
        "gpus": bool(found.get("gpus")),
        "gpu_cores_percent": bool(found.get("gpu_cores_percent") or found.get("gpu_memory_mib")),
        "mig_devices": bool(found.get("mig_devices") or found.get("mig_profile")),
    }
    asked = [name for name, is_asked in ways.items() if is_asked]
    if len(asked) > 1:
        message = (
            f"resources: {' and '.join(asked)} exclude each other. Ask for whole GPUs (gpus), for a share of one "
            "(gpu_cores_percent and gpu_memory_mib), or for MIG devices (mig_profile and mig_devices)."
        )
        problems.append(problem_with(asked[1], "excluded", message))
    for one, other in (("gpu_cores_percent", "gpu_memory_mib"), ("mig_profile", "mig_devices")):
        for present, missing in ((one, other), (other, one)):
            if found.get(present) and not found.get(missing):
                message = f"resources.{missing} is required with resources.{present}."
                problems.append(problem_with(missing, "required", message))
    return problems


def over_limits(group: ResourceGroup, resources: Resources, field: str) -> list[FieldProblem]:
    """What one container asks for beyond the limits of the group."""
    return [
        FieldProblem(
            f"{field}.{name}",
            "over_limit",
            f"{field}.{name}: {getattr(resources, name)} requested, the resource group {quoted(group.name)} "
            f"allows {limit} per container.",
        )
        for name, limit in group.run_limits.items()
        if getattr(resources, name) > limit
    ]


def without_node(group: ResourceGroup, nodes: list[Node], resources: Resources, field: str) -> list[FieldProblem]:
    """A problem unless one of the nodes, when empty, takes the container."""
    profile = resources.mig_profile
    if profile and not any(node.assigns_gpus for node in nodes):
        devices = Gpu.objects.filter(node__in=nodes).exclude(mig_profile="")
        kinds = dict(devices.order_by("mig_profile").values_list("mig_profile").annotate(number=Count("pk")))
        if profile not in kinds:
            has = ", ".join(f"{kind} ({number})" for kind, number in kinds.items()) or "no MIG devices"
            message = f"The resource group {quoted(group.name)} has no MIG devices {quoted(profile)}; it has {has}."
            return [FieldProblem(f"{field}.mig_profile", "unschedulable", message)]
    caps: dict[UUID, list[Usage]] = {node.pk: [] for node in nodes}
    for row in Usage.objects.filter(scope="node", scope_id__in=caps).order_by("pk"):
        caps[row.scope_id].append(row)
    shortages = [shortage_of_empty(node, caps[node.pk], resources) for node in nodes]
    if nodes and None in shortages:
        return []
    nearest = next((shortage for shortage in shortages if shortage), None)
    detail = f"; the nearest node: {nearest}" if nearest else ": it has no node"
    message = (
        f"No node of the resource group {quoted(group.name)} can take this run{detail}. "
        "Ask for less, or for another group."
    )
    return [FieldProblem(field, "unschedulable", message)]


def shortage_of_empty(node: Node, caps: Iterable[Usage], resources: Resources) -> Shortage | None:
    """Why the node could not take the container even with nothing else on it; None: it could."""
    wanted = amounts_of(resources)
    for row in caps:
        shortage = Shortage("node", row.resource, row.cap, 0, wanted.get(row.resource, 0), node.name)
        if not shortage.can_ever_fit:
            return shortage
    if not resources.has_gpu or node.assigns_gpus:
        return None
    devices = usable(node.gpu_devices.all())
    for gpu in devices:
        gpu.cores_used = gpu.memory_used_mib = 0
    found = choose(devices, resources)
    return (
        Shortage("node", found.resource, found.cap, 0, found.wanted, node.name, found.detail)
        if isinstance(found, Shortage)
        else None
    )


def problem_with(name: str, code: str, message: str) -> FieldProblem:
    """A problem with one field of ``resources``."""
    return FieldProblem(f"resources.{name}", code, message)
