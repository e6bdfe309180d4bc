"""The one place that says what a container may be: the whole create payload, and its comparison with what came out."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from runner.contract import folder as names
from runner.executors.base import Launch, LaunchRefused
from runner.executors.launching import program_environment

FIRST_USER_ID = 200_000
#: Where the wrapper and its two folders are inside of every container.
WRAPPER, ORDERS, REPORT = "/clavier/wrapper", "/clavier/orders", "/clavier/report"
NO_NETWORK = "none"
#: File systems in memory; compiled kernels may be executed in the second.
SCRATCH = ("/tmp", "/work")

_MAX_PIDS_WITH_GPU = 4096
_MAX_TMPFS_MIB = 1024
_OOM_SCORE_ADJUSTMENT = 500
_ENGINE_LOG = {"max-size": "1m", "max-file": "2"}
_GPU_CAPABILITIES = ("gpu", "compute", "utility")
#: What the engine must hide at least; newer engines hide more.
_MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware")
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_FIELD = re.compile(r"[A-Z][A-Za-z]*")
#: Facts of the engine that give a container no power.
_DESCRIPTIVE = {
    "Id", "Created", "State", "ResolvConfPath", "HostnamePath", "HostsPath", "LogPath", "Name", "RestartCount",
    "Driver", "MountLabel", "ProcessLabel", "GraphDriver", "ImageManifestDescriptor", "Storage", "SizeRw",
    "SizeRootFs", "Config", "HostConfig", "NetworkSettings", "Mounts",
}  # fmt: skip


class ProfileMismatch(Exception):
    """The engine made another container than was asked for. The message names every field that differs."""


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A host path (symlinks resolved) and where the container sees it."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a launch does not say itself.

    ``image_id``; ``labels``: all of them; ``mounts``: checked ones; ``environment``: the operator's;
    ``network``: ``none`` or a network's name, with the container's ``alias`` in it; ``python``: the interpreter of
    platform programs inside the image, which finds them by itself if ``has_programs``; ``max_open_files``: not more
    than the engine itself may have.
    """

    image_id: str
    labels: dict[str, str]
    mounts: tuple[MountPoint, ...]
    environment: dict[str, str]
    python: str
    has_programs: bool = False
    network: str = NO_NETWORK
    alias: str = ""
    max_open_files: int = 1024
    max_log_mib: int = 1024


def container_profile(launch: Launch, around: Surroundings) -> dict[str, Any]:
    """The create payload of a launch, complete: nothing of it is left to the image or to the engine's defaults."""
    user = f"{user_of(launch)}:{user_of(launch)}"
    payload: dict[str, Any] = {
        "Hostname": around.alias or "run",
        "User": user,
        "Image": around.image_id,
        "Entrypoint": [],
        "Cmd": wrapped_command(launch, around),
        "Env": [f"{key}={value}" for key, value in container_environment(launch, around).items()],
        "WorkingDir": os.path.join(os.path.abspath(launch.run_folder), launch.spec.start_in),
        "Labels": dict(around.labels),
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(launch, around),
    }
    if around.alias:
        payload["NetworkingConfig"] = {"EndpointsConfig": {around.network: {"Aliases": [around.alias]}}}
    return payload


def user_of(launch: Launch) -> int:
    """The user (and group) number of a tenant's programs, never 0. Raises LaunchRefused."""
    if launch.owner_id < 1:
        raise LaunchRefused(f"owner_id {launch.owner_id} is no tenant: it must be 1 or more.")
    return FIRST_USER_ID + launch.owner_id


def wrapped_command(launch: Launch, around: Surroundings) -> list[str]:
    """The wrapper's own arguments, then the program's command line."""
    limits, run_folder = launch.spec.limits, os.path.abspath(launch.run_folder)
    program = launch.spec.argv or (around.python, "-m", str(launch.spec.program), run_folder)
    if launch.spec.argv and launch.spec.ready_file:
        ends = (os.path.join(run_folder, names.SOCKET), os.path.join(run_folder, names.READY))
        program = (WRAPPER, "--relay", *ends, str(launch.spec.serve_port), *program)
    return [
        WRAPPER,
        os.path.join(run_folder, names.log_name(launch.rank)),
        str(around.max_log_mib),
        str((limits.time_limit_s or 0) * 1000),
        str(limits.stop_grace_s * 1000),
        str(launch.wanted.memory_mib),
        ORDERS,
        REPORT,
        *program,
    ]


def container_environment(launch: Launch, around: Surroundings) -> dict[str, str]:
    """The program's environment; an image keeps its own PATH and Python, and nobody chooses GPUs or preloads."""
    environment = program_environment(launch, around.python)
    if launch.spec.image is not None:
        del environment["PATH"]
    if around.has_programs:
        environment.pop("PYTHONPATH", None)
    # Compiled kernels are executed, so they go to the one scratch file system that allows it.
    caches = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
    environment |= {name: f"/work/{folder}" for name, folder in caches.items()}
    environment |= around.environment | launch.spec.environment
    environment["LD_PRELOAD"] = ""
    environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(launch.gpus) or "void"
    environment["NVIDIA_DRIVER_CAPABILITIES"] = ",".join(_GPU_CAPABILITIES[1:])
    return environment


def assert_profile(inspected: dict[str, Any], payload: dict[str, Any], image: dict[str, Any], runtime: str) -> None:
    """Raise ProfileMismatch unless the engine reports exactly the payload, and nothing that nobody asked for.

    ``image``: what the engine says of the payload's image, whose labels, ports and further variables are inherited.
    """
    host = dict(inspected["HostConfig"])
    expected_host = payload["HostConfig"] | {"Runtime": runtime}
    wrong = [
        f"HostConfig.{key}: {path} is not hidden"
        for key, paths in (("MaskedPaths", _MASKED), ("ReadonlyPaths", _READ_ONLY))
        for path in sorted(set(paths) - set(host.pop(key, None) or ()))
    ]
    expected_top = {"Image": payload["Image"], "Path": payload["Cmd"][0], "Args": payload["Cmd"][1:]}
    top = {key: value for key, value in inspected.items() if key not in _DESCRIPTIVE}
    if top.get("Platform") == "linux":
        top.pop("Platform")
    if top.get("AppArmorProfile") == "docker-default":
        top.pop("AppArmorProfile")
    wrong += _differences("", top, expected_top)
    wrong += _differences("Config.", inspected["Config"], _expected_config(payload, image["Config"] or {}))
    wrong += _differences("HostConfig.", host, expected_host)
    wrong += _differences("", {"Mounts": inspected["Mounts"]}, {"Mounts": _expected_mounts(payload)})
    wrong += _network_differences(inspected, payload)
    if wrong:
        raise ProfileMismatch("; ".join(wrong))


def _host_config(launch: Launch, around: Surroundings) -> dict[str, Any]:
    wanted, limits = launch.wanted, launch.spec.limits
    user, memory = user_of(launch), wanted.memory_mib << 20
    scratch = f"nosuid,nodev,size={max(16, min(_MAX_TMPFS_MIB, wanted.memory_mib // 4))}m"
    scratch += f",uid={user},gid={user},mode=0700"
    has_gpu = bool(launch.gpus)
    request = {"Driver": "nvidia", "DeviceIDs": list(launch.gpus), "Capabilities": [list(_GPU_CAPABILITIES)]}
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Init": True,
        "Privileged": False,
        "AutoRemove": False,
        "PublishAllPorts": False,
        "Tmpfs": {SCRATCH[0]: f"rw,noexec,{scratch}", SCRATCH[1]: f"rw,exec,{scratch}"},
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": wanted.cpu_milli * 1_000_000,
        "PidsLimit": max(limits.max_processes, _MAX_PIDS_WITH_GPU) if has_gpu else limits.max_processes,
        "ShmSize": wanted.shm_mib << 20,
        "OomScoreAdj": _OOM_SCORE_ADJUSTMENT,
        "Ulimits": [
            {"Name": "nofile", "Soft": around.max_open_files, "Hard": around.max_open_files},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": limits.max_file_mib << 20, "Hard": limits.max_file_mib << 20},
        ],
        "NetworkMode": around.network,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": {"Type": "json-file", "Config": dict(_ENGINE_LOG)},
        "DeviceRequests": [request] if has_gpu else [],
        "Mounts": [_mount(point) for point in around.mounts],
    }


def _mount(point: MountPoint) -> dict[str, Any]:
    # Not recursive: what is mounted below a source would keep its own rights, writing too.
    options = {"Propagation": "rprivate", "NonRecursive": True}
    return {
        "Type": "bind",
        "Source": point.source,
        "Target": point.target,
        "ReadOnly": not point.writable,
        "BindOptions": options,
    }


def _expected_config(payload: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """What Config must be: the payload's, and what every container takes over from its image."""
    own = {line.split("=", 1)[0] for line in payload["Env"]}
    inherited = [line for line in image.get("Env") or () if line.split("=", 1)[0] not in own]
    expected = {key: value for key, value in payload.items() if key not in ("HostConfig", "NetworkingConfig")}
    return expected | {
        "Env": [*payload["Env"], *inherited],
        "Labels": (image.get("Labels") or {}) | payload["Labels"],
        **{key: image[key] for key in ("ExposedPorts", "Shell", "ArgsEscaped") if image.get(key)},
    }


def _expected_mounts(payload: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "Type": "bind",
            "Source": mount["Source"],
            "Destination": mount["Target"],
            "RW": not mount["ReadOnly"],
            "Propagation": "rprivate",
        }
        for mount in payload["HostConfig"]["Mounts"]
    ]


def _network_differences(inspected: dict[str, Any], payload: dict[str, Any]) -> list[str]:
    network = payload["HostConfig"]["NetworkMode"]
    seen = inspected["NetworkSettings"]
    wrong = _differences("NetworkSettings.", {"Ports": seen.get("Ports")}, {})
    if set(seen["Networks"]) != {network}:
        return [*wrong, f"NetworkSettings.Networks: {sorted(seen['Networks'])} instead of {network}"]
    wanted = set(payload.get("NetworkingConfig", {}).get("EndpointsConfig", {}).get(network, {}).get("Aliases", ()))
    # The engine adds the container's own short id and, since 25, its host name.
    strange = set(seen["Networks"][network].get("Aliases") or ()) - wanted - {inspected["Id"][:12]}
    links = seen["Networks"][network].get("Links")
    return wrong + [f"NetworkSettings.Networks.{network}: {what}" for what in (strange, links) if what]


def _differences(where: str, seen: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Every field in words; what is absent, empty, zero or false counts as the same nothing."""
    return [
        f"{where}{key} is {seen.get(key)!r} instead of {expected.get(key)!r}"
        for key in sorted(set(seen) | set(expected))
        if _plain(seen.get(key)) != _plain(expected.get(key))
    ]


def _plain(value: Any) -> Any:
    """A value without the nothings in it; the order of a list of objects means nothing.

    Fields of the engine's objects are capitalised. Other keys are a map's (``/data``, ``80/tcp``) and count even where
    they lead to nothing.
    """
    if isinstance(value, dict):
        plains = {key: _plain(each) for key, each in value.items()}
        return {key: plain for key, plain in plains.items() if plain is not None or not _FIELD.fullmatch(key)} or None
    if isinstance(value, list):
        plain_items = [_plain(each) for each in value]
        if not any(plain is not None for plain in plain_items):
            return None
        return sorted(plain_items, key=repr) if any(isinstance(each, dict) for each in value) else plain_items
    return value or None
