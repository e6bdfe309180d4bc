"""What a request says of the versions of a service, checked as a whole."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from clavier.core.actor import Actor
from clavier.core.errors import DomainError, FieldProblem, Invalid, InvalidFields, quoted
from clavier.core.problems import Problems
from clavier.files.folders import own_folder
from clavier.images.access import access_image_version
from clavier.images.models import ImageVersion
from clavier.runs.commands import checked_environment, checked_hyperparameters
from clavier.runs.options import checked_options, is_whole
from clavier.runs.own_code import OwnCode, checked_own_code, placeholders
from clavier.runs.services import checked_resources
from inference_app.models import REQUEST_METHODS, SCALE_ON
from models_app.declarations import with_declared
from models_app.models import ModelVersion
from models_app.services import access_model_version, require_task, require_usable

DEFAULT_RESOURCES = {"cpu_milli": 500, "memory_mib": 2048, "gpus": 0}
DEFAULT_CONTEXT_TOKENS = 2048
MIN_CONTEXT_TOKENS = 16
MAX_CONTEXT_TOKENS = 1_048_576
MAX_REPLICAS = 64
MAX_VERSIONS = 20
MAX_PORTS = 16
MAX_VOLUMES = 16
#: What our own servers can do with a model: write answers, or score them.
SERVED_TASKS = ("generation", "reward")
#: Everything that may be said of a version.
VERSION_FIELDS = (
    "model_version", "image", "command", "code_folder", "environment", "hyperparameters", "image_ports", "volumes",
    "volume_path", "request_method", "traffic_percent", "num_replicas", "min_replicas", "max_replicas", "scale_on",
    "scale_threshold", "context_tokens", "parallel", "resources", "options", "submitted",
)  # fmt: skip
_NUMBERS = {
    "traffic_percent": (0, 100, 100),
    "parallel": (1, 256, 4),
    "scale_threshold": (1, 1_000_000, 100),
}


def checked_versions(actor: Actor, given: Sequence[Mapping[str, Any]], *, is_list: bool) -> list[dict[str, Any]]:
    """The columns of each version. ``is_list``: fields are called ``versions[0].name`` rather than ``name``.

    Raises InvalidFields with every problem, NotFound, Conflict.
    """
    if not 1 <= len(given) <= MAX_VERSIONS:
        message = f"versions: {len(given)} given; a service has 1 to {MAX_VERSIONS}."
        raise Invalid(message, code="required" if not given else "too_many", field="versions")
    columns: list[dict[str, Any]] = []
    problems: list[FieldProblem] = []
    for place, version in enumerate(given):
        prefix = f"versions[{place}]." if is_list else ""
        try:
            with named_as(prefix):
                columns.append(checked_version(actor, version))
        except InvalidFields as refusal:
            problems += refusal.problems
    if problems:
        raise InvalidFields(problems)
    require_one_task([version["model_version"] for version in columns if not version["own_code"].get("command")])
    require_shares([version["traffic_percent"] for version in columns], field="traffic_percent")
    return columns


@contextmanager
def named_as(prefix: str) -> Iterator[None]:
    """Put the version's place before the field of every problem of a refusal."""
    try:
        yield
    except DomainError as refusal:
        refusal.field = prefix + refusal.field if refusal.field else refusal.field
        refusal.problems = tuple(FieldProblem(prefix + one.field, one.code, one.message) for one in refusal.problems)
        raise


def checked_version(actor: Actor, given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of one version. Raises InvalidFields with every problem, NotFound, Conflict."""
    problems = Problems()
    for name in sorted(set(given) - set(VERSION_FIELDS)):
        problems.add(name, "unknown_field", f"{name} is none of {', '.join(VERSION_FIELDS)}.")
    model = model_of(actor, problems, given)
    image = None
    if given.get("image"):
        image = problems.check(access_image_version, actor, given["image"], field="image")
    elif model is not None and model.format == "image":
        image = model.image_version
    where = problems.check(checked_options, given.get("options") or {}) or {}
    group = where.get("resource_group", "")
    wanted = {**DEFAULT_RESOURCES, **(given.get("resources") or {})}
    asked = given.get("hyperparameters") or {}
    if model is not None and (image is not None or given.get("command")):
        asked = problems.check(with_declared, model.declarations, asked) or {}
    values = problems.check(checked_hyperparameters, asked) or {}
    own_code = own_code_of(actor, problems, given, image, values)
    columns: dict[str, Any] = {
        **numbers_of(problems, given),
        **replicas_of_request(problems, given),
        **words_of(problems, given),
        "model_version": model,
        "image_version": image,
        "own_code": own_code,
        "hyperparameters": values,
        "image_ports": problems.check(checked_ports, given.get("image_ports") or []) or [],
        "volumes": problems.check(checked_volumes, actor, given.get("volumes") or []) or [],
        "volume_path": given.get("volume_path") or "",
        "context_tokens": context_of(problems, given, model),
        "resources": problems.check(checked_resources, wanted, resource_group=group),
        "options": where,
        "submitted": dict(given.get("submitted") or {}),
    }
    if columns["volume_path"]:
        problems.check(own_folder, actor, columns["volume_path"], field="volume_path")
    for name in ("volumes", "volume_path"):
        if columns[name] and not own_code.get("command"):
            message = "Mounted folders reach own servers only; the platform's servers read their model alone."
            problems.add(name, "not_honoured", message)
    if values and not own_code.get("command"):
        message = "hyperparameters reach own servers only; the platform's take context_tokens and parallel."
        problems.add("hyperparameters", "not_honoured", message)
    problems.end()
    return columns


def model_of(actor: Actor, problems: Problems, given: Mapping[str, Any]) -> ModelVersion | None:
    """The model to serve; an own server may do without."""
    if not given.get("model_version"):
        if not given.get("image") and not given.get("command"):
            problems.add("model_version", "required", "model_version is required: the id of a model version.")
        return None
    version = problems.check(access_model_version, actor, given["model_version"])
    if version is not None:
        require_usable(version, needs_files=False)
        if version.format != "image" and not given.get("image") and not given.get("command"):
            problems.check(require_task, version, *SERVED_TASKS, purpose="a service")
            wanted = given.get("resources") or {}
            if version.task == "reward" and isinstance(gpus := wanted.get("gpus"), int) and gpus > 1:
                message = f"resources.gpus is {gpus}; a reward model is served on one GPU or on none."
                problems.add("resources.gpus", "out_of_range", message)
    return version


def require_one_task(models: Sequence[ModelVersion | None]) -> None:
    """Raises Invalid (``wrong_task``) where some versions of a service write and others score."""
    tasks = sorted({model.task for model in models if model is not None and model.format != "image"})
    if len(tasks) > 1:
        raise Invalid(
            f"model_version: the versions of one service are models for {' and '.join(tasks)}; make a service for "
            "each.",
            code="wrong_task",
            field="model_version",
        )


def own_code_of(
    actor: Actor,
    problems: Problems,
    given: Mapping[str, Any],
    image: ImageVersion | None,
    values: Mapping[str, str],
) -> dict[str, Any]:
    """The own server's command (the image's own where none is given) and environment; empty for a built-in server."""
    environment, command = given.get("environment") or {}, given.get("command") or ""
    if command:
        folders = placeholders(has_model=bool(given.get("model_version")), has_input=bool(given.get("volume_path")))
        code: OwnCode = checked_own_code(
            actor,
            problems,
            command=command,
            known=[*folders, "socket", "port", *values],
            code_folder=given.get("code_folder") or "",
            environment=environment,
        )
        return code.to_json()
    variables = problems.check(checked_environment, environment) or {}
    if image is None:
        return {"environment": variables} if variables else {}
    words = [*image.entrypoint, *image.cmd]
    if not words:
        message = f"command is required: the image {image} has neither an entrypoint nor a command of its own."
        problems.add("command", "required", message)
    return {"command": shlex.join(words), "environment": variables}


def numbers_of(problems: Problems, given: Mapping[str, Any]) -> dict[str, int]:
    """Whole numbers within bounds, or their defaults."""
    found = {}
    for name, (lowest, highest, default) in _NUMBERS.items():
        value = given.get(name)
        value = default if value is None else value
        problems.check(require_in_range, name, value, lowest, highest)
        found[name] = value
    return found


def replicas_of_request(problems: Problems, given: Mapping[str, Any]) -> dict[str, int]:
    """How many replicas there are now, at least and at most."""
    asked = {name: given.get(name) for name in ("num_replicas", "min_replicas", "max_replicas")}
    for name, value in asked.items():
        if value is not None:
            problems.check(require_in_range, name, value, 0 if name == "min_replicas" else 1, MAX_REPLICAS)
    sound: dict[str, Any] = {name: value for name, value in asked.items() if is_whole(value, 0, MAX_REPLICAS)}
    number = sound.get("num_replicas", max(1, sound.get("min_replicas", 1)))
    lowest = sound.get("min_replicas", min(number, sound.get("max_replicas", 1)))
    highest = sound.get("max_replicas", max(number, lowest))
    if not lowest <= number <= highest:
        message = f"min_replicas {lowest} <= num_replicas {number} <= max_replicas {highest} does not hold."
        problems.add("min_replicas", "out_of_range", message)
    return {"num_replicas": number, "min_replicas": lowest, "max_replicas": highest}


def words_of(problems: Problems, given: Mapping[str, Any]) -> dict[str, str]:
    """One of a few words each."""
    found = {}
    for name, allowed in (("request_method", REQUEST_METHODS), ("scale_on", SCALE_ON)):
        found[name] = given.get(name) or allowed[0]
        if found[name] not in allowed:
            message = f"{name} {quoted(found[name])} is none of {', '.join(allowed)}."
            problems.add(name, "not_a_choice", message)
    return found


def context_of(problems: Problems, given: Mapping[str, Any], model: ModelVersion | None) -> int:
    """How many tokens prompt and answer may have together: at most what the model was built for."""
    longest = longest_context(model) if model else MAX_CONTEXT_TOKENS
    value = given.get("context_tokens")
    value = min(DEFAULT_CONTEXT_TOKENS, longest) if value is None else value
    problems.check(require_in_range, "context_tokens", value, MIN_CONTEXT_TOKENS, longest)
    return int(value) if is_whole(value, 0, MAX_CONTEXT_TOKENS) else 0


def checked_ports(given: Any) -> list[int]:
    """Ports on which the server listens, the first for requests. Raises Invalid (``out_of_range``)."""
    if not isinstance(given, list) or len(given) > MAX_PORTS or not all(is_whole(port, 1, 65_535) for port in given):
        message = f"image_ports {quoted(given)}: a list of at most {MAX_PORTS} ports, each 1-65535."
        raise Invalid(message, code="out_of_range", field="image_ports")
    return given


def checked_volumes(actor: Actor, given: Any) -> list[dict[str, str]]:
    """``[{src, dst}]``: folders of the actor's files and where the container sees them. Raises InvalidFields."""
    if not isinstance(given, list) or len(given) > MAX_VOLUMES:
        message = f"volumes {quoted(given)}: a list of at most {MAX_VOLUMES} of {{src, dst}}."
        raise Invalid(message, code="wrong_type", field="volumes")
    problems = Problems()
    for place, volume in enumerate(given):
        name = f"volumes[{place}]"
        if not isinstance(volume, Mapping) or set(volume) != {"src", "dst"}:
            problems.add(name, "wrong_type", f"{name} {quoted(volume)} is not {{src, dst}}.")
            continue
        problems.check(own_folder, actor, str(volume["src"]), field=f"{name}.src")
        problems.check(check_target, str(volume["dst"]), field=f"{name}.dst")
    problems.end()
    return [{"src": str(volume["src"]), "dst": str(volume["dst"])} for volume in given]


def check_target(path: str, *, field: str) -> None:
    """Raises Invalid unless the path may be laid over a folder of an image."""
    parts = path.split("/")[1:]
    taken = {"", "dev", "proc", "sys", "etc", "run", "boot", "bin", "sbin", "lib", "lib64", "usr"}
    if not path.startswith("/") or ".." in parts or not parts or parts[0] in taken or len(path) > 1000 or "\0" in path:
        raise Invalid(
            f"{field} {quoted(path)} is no place for a volume: give an absolute path such as /data, outside the "
            "system's folders.",
            code="bad_path",
            field=field,
        )


def require_shares(shares: Sequence[int], *, field: str) -> None:
    """Raises Invalid (``rates_not_100``) unless the shares of the traffic make up all of it."""
    if sum(shares) != 100 or any(not is_whole(share, 0, 100) for share in shares):
        raise Invalid(
            f"{field}: the shares of the traffic sum to {sum(shares)}; they must sum to 100.",
            code="rates_not_100",
            field=field,
        )


def longest_context(version: ModelVersion) -> int:
    """How many tokens prompt and answer may have together: what the model was built for."""
    model = version.base_version if version.format == "adapter" and version.base_version else version
    return int(model.facts.get("context_tokens") or MAX_CONTEXT_TOKENS)


def require_in_range(field: str, value: int, lowest: int, highest: int) -> None:
    """Raises Invalid (``out_of_range``)."""
    if not is_whole(value, lowest, highest):
        message = f"{field} {quoted(value)} is no whole number from {lowest} to {highest}."
        raise Invalid(message, code="out_of_range", field=field)
