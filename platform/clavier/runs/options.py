"""Where and when a run is to start: its resource group, nodes, roles, priority and urgency, as a request gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from clavier.core.errors import FieldProblem, InvalidFields, quoted
from clavier.quotas.requests import checked_resources
from runner.contract.run_spec import Resources, Role, RunSpec

ROLE_NAMES = ("master", "worker")
MAX_ROLE_COUNT = 256
MAX_NODE_NAMES = 256
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100

_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "resource_group": (lambda value: isinstance(value, str) and 1 <= len(value) <= 63, "the name of a resource group"),
    "priority": (
        lambda value: is_whole(value, LOWEST_PRIORITY, HIGHEST_PRIORITY),
        f"a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}",
    ),
    "is_urgent": (lambda value: isinstance(value, bool), "true or false"),
    "node_names": (
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) <= MAX_NODE_NAMES
            and all(isinstance(name, str) and name for name in value)
        ),
        f"a list of at most {MAX_NODE_NAMES} names of nodes",
    ),
    "roles": (lambda value: isinstance(value, list | tuple), "a list of roles"),
}


def checked_options(given: Mapping[str, Any], *, field: str = "options") -> dict[str, Any]:
    """The options as plain data, only those that were given. Raises InvalidFields with every problem."""
    problems = []
    for name, value in given.items():
        place = f"{field}.{name}"
        if name not in _CHECKS:
            problems.append(FieldProblem(place, "unknown_field", f"{place} is none of {', '.join(_CHECKS)}."))
        elif not _CHECKS[name][0](value):
            problems.append(FieldProblem(place, "bad_value", f"{place} {quoted(value)} is not {_CHECKS[name][1]}."))
    if problems:
        raise InvalidFields(problems)
    found = dict(given)
    if "node_names" in found:
        found["node_names"] = list(found["node_names"])
    if "roles" in found:
        found["roles"] = checked_roles(found["roles"], found.get("resource_group", ""), field=f"{field}.roles")
    return found


def checked_roles(given: list[Any], resource_group: str, *, field: str) -> list[dict[str, Any]]:
    """``[{name, count, resources}]`` with one master at most. Raises InvalidFields."""
    roles, problems = [], []
    for index, role in enumerate(given):
        place = f"{field}[{index}]"
        if not isinstance(role, Mapping) or set(role) - {"name", "count", "resources"}:
            problems.append(FieldProblem(place, "wrong_type", f"{place} is not {{name, count, resources}}."))
            continue
        name, count = role.get("name"), role.get("count", 1)
        if name not in ROLE_NAMES:
            message = f"{place}.name {quoted(name)} is none of {', '.join(ROLE_NAMES)}."
            problems.append(FieldProblem(f"{place}.name", "not_a_choice", message))
        highest = 1 if name == "master" else MAX_ROLE_COUNT
        if not is_whole(count, 1, highest):
            message = f"{place}.count {quoted(count)} is no whole number from 1 to {highest}."
            problems.append(FieldProblem(f"{place}.count", "out_of_range", message))
        try:
            resources = checked_resources(role.get("resources") or {}, resource_group=resource_group)
            roles.append({"name": name, "count": count, "resources": resources})
        except InvalidFields as refusal:
            problems += [FieldProblem(f"{place}.{one.field}", one.code, one.message) for one in refusal.problems]
    names = [role["name"] for role in roles]
    if not problems and len(set(names)) != len(names):
        problems.append(FieldProblem(field, "conflicting_fields", f"{field}: each role is given once, with its count."))
    if problems:
        raise InvalidFields(problems)
    return sorted(roles, key=lambda role: ROLE_NAMES.index(role["name"]))


def with_options(spec: RunSpec, options: Mapping[str, Any]) -> RunSpec:
    """The spec as the options want it. A single container given as a role is an ordinary run with its resources."""
    changes = {name: options[name] for name in ("resource_group", "priority", "is_urgent") if name in options}
    if options.get("node_names"):
        changes["node_names"] = tuple(options["node_names"])
    roles = tuple(
        Role(role["name"], role["count"], Resources(**role["resources"])) for role in options.get("roles") or ()
    )
    if sum(role.count for role in roles) == 1:
        changes["resources"] = roles[0].resources
    elif roles:
        changes |= {"roles": roles, "resources": roles[0].resources}
    return replace(spec, **changes)


def is_whole(value: Any, lowest: int, highest: int) -> bool:
    """A whole number within bounds, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest
