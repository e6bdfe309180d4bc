"""What an image's configuration says, and what of it is refused."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any

from runner.programs.lib.events import ProgramError

#: What an engine stacks at most.
MAX_LAYERS = 127
_DIFF_ID = re.compile(r"sha256:[0-9a-f]{64}")
_NO_WORKDIR = ("/proc", "/sys", "/dev")
#: Environment that the platform sets itself, whatever the image says.
_OVERRIDDEN = re.compile(r"(LD_|NVIDIA_|DOCKER_)|CUDA_VISIBLE_DEVICES$")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A checked configuration; ``id`` is what an engine calls the image."""

    id: str
    diff_ids: list[str]
    facts: dict[str, Any]
    warnings: list[str]


def check_config(content: bytes, *, system: str, architectures: list[str]) -> ImageConfig:
    """Read and check a configuration for engines of one system (``linux``) and some architectures (``amd64``).

    Raises ProgramError (``bad_image``, ``wrong_architecture``, ``volume_not_allowed``).
    """
    config = json_object(content, "the image's configuration")
    _check_platform(config, system, architectures)
    diff_ids = _diff_ids(config)
    runtime = _part(config, "config", dict)
    if volumes := sorted(_part(runtime, "Volumes", dict)):
        raise ProgramError(
            "volume_not_allowed",
            f"The image declares VOLUME {', '.join(volumes)[:200]}: it would fill the engine's own disk without a "
            "limit. Build it without VOLUME.",
        )
    _check_workdir(_part(runtime, "WorkingDir", str))
    names = [str(entry).partition("=")[0] for entry in _part(runtime, "Env", list)]
    facts = {
        "architecture": config["architecture"],
        "os": config["os"],
        "user": _part(runtime, "User", str),
        "entrypoint": _words(runtime, "Entrypoint"),
        "cmd": _words(runtime, "Cmd"),
        "working_dir": _part(runtime, "WorkingDir", str),
        "env_names": names,
        "exposed_ports": sorted(_part(runtime, "ExposedPorts", dict)),
    }
    warnings = _warnings(names, _part(runtime, "Healthcheck", dict))
    return ImageConfig(f"sha256:{hashlib.sha256(content).hexdigest()}", diff_ids, facts, warnings)


def json_object(content: bytes, what: str) -> dict[str, Any]:
    """Raises ProgramError (``bad_image``) naming what is broken."""
    value = read_json(content, what)
    if not isinstance(value, dict):
        raise ProgramError("bad_image", f"{what} is no JSON object.")
    return value


def read_json(content: bytes, what: str) -> Any:
    """Raises ProgramError (``bad_image``) naming what is broken."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProgramError("bad_image", f"{what} is no JSON: {str(error)[:200]}.") from None


def _check_platform(config: dict[str, Any], system: str, architectures: list[str]) -> None:
    found_system, found = _part(config, "os", str), _part(config, "architecture", str)
    if found_system != system:
        raise ProgramError(
            "wrong_architecture", f"The image is for {found_system[:40]!r}; this platform runs {system}."
        )
    if found not in architectures:
        raise ProgramError(
            "wrong_architecture",
            f"The image is for {found[:40]!r}; this platform runs {', '.join(architectures)}. "
            f"Build it with --platform {system}/{architectures[0]}.",
        )


def _diff_ids(config: dict[str, Any]) -> list[str]:
    found: list[Any] = _part(_part(config, "rootfs", dict), "diff_ids", list)
    if not all(isinstance(diff_id, str) and _DIFF_ID.fullmatch(diff_id) for diff_id in found):
        raise ProgramError("bad_image", "The configuration's rootfs.diff_ids are not all sha256 digests.")
    if not 1 <= len(found) <= MAX_LAYERS:
        raise ProgramError("bad_image", f"The image has {len(found)} layers; 1 to {MAX_LAYERS} layers are allowed.")
    return found


def _check_workdir(path: str) -> None:
    normal = posixpath.normpath(path)
    in_kernel = any(normal == root or normal.startswith(f"{root}/") for root in _NO_WORKDIR)
    if path and (not path.startswith("/") or ".." in path.split("/") or in_kernel):
        raise ProgramError(
            "bad_image",
            f"The image's WORKDIR {path[:200]!r} is not allowed: it must be absolute, without '..', and not below "
            f"{', '.join(_NO_WORKDIR)}.",
        )


def _warnings(names: list[str], healthcheck: dict[str, Any]) -> list[str]:
    found = []
    if overridden := [name for name in names if _OVERRIDDEN.match(name)]:
        found.append(f"These variables of the image are overridden when it runs: {', '.join(overridden)}.")
    if healthcheck and healthcheck.get("Test") != ["NONE"]:
        found.append("The image's HEALTHCHECK is not used.")
    return found


def _words(config: dict[str, Any], name: str) -> list[str]:
    return [str(word) for word in _part(config, name, list)]


def _part(config: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """A part of the configuration; absent or null is empty. Raises ProgramError where it is of another type."""
    value = config.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ProgramError("bad_image", f"The configuration's {name} is {value!r:.60}, no {kind.__name__}.")
    return value
