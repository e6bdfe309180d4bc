"""Which host paths a container may see: only those of the platform, in whose place no tenant can put another."""

from __future__ import annotations

import os
import stat

from runner.contract import folder as names
from runner.executors.base import ExecutorError, Launch, LaunchRefused
from runner.executors.docker_profile import FIRST_USER_ID, ORDERS, REPORT, SCRATCH, WRAPPER, MountPoint

#: The machine itself, and sockets of its services.
_NEVER = ("/dev", "/proc", "/sys", "/etc", "/run", "/boot")


def refuse_machine(launch: Launch, closed: tuple[str, ...]) -> None:
    """Raise LaunchRefused for mounts that are parts of the machine, or folders of the platform's data as a whole.

    Of ``closed`` folders only what lies below may be lent.
    """
    for mount in launch.spec.mounts:
        real = os.path.realpath(mount.source)
        for path in _NEVER:
            if _is_below(real, path) or _is_below(path, real):
                raise LaunchRefused(f"Mount {mount.source}: {path} of the machine is never lent to a container.")
        for path in closed:
            if _is_below(os.path.realpath(path), real):
                raise LaunchRefused(f"Mount {mount.source} holds the platform's own {path}; lend a folder below it.")


def mounts_of(
    launch: Launch, *, wrapper: str, orders: str, report: str, programs: tuple[str, ...]
) -> tuple[MountPoint, ...]:
    """Everything that the container of a launch sees of the host, each source checked.

    ``programs``: folders of the operator (repository, interpreter), read-only.
    Raises LaunchRefused for a mount of the launch, ExecutorError for what the operator has to put right.
    """
    run = os.path.abspath(launch.run_folder)
    mounted: dict[str, tuple[str, bool]] = {}
    for mount in launch.spec.mounts:
        target = _checked_target(mount.target, run) if mount.target else mount.source
        source, writable = mounted.get(target, (mount.source, False))
        if source != mount.source:
            raise LaunchRefused(f"Mounts {source} and {mount.source} both want to be at {target}.")
        mounted[target] = (source, writable or mount.writable)
    own = dict.fromkeys(programs, False) | {run: False}
    own |= {os.path.join(run, name): True for name in names.PROGRAM_FOLDERS}
    own |= {os.path.join(run, name): True for name in (names.METRICS, names.log_name(launch.rank))}
    points = [_checked(source, target, writable) for target, (source, writable) in mounted.items() if target not in own]
    try:
        points += [_checked(path, path, writable) for path, writable in own.items()]
        points += [_checked(wrapper, WRAPPER, False), _checked(orders, ORDERS, False), _checked(report, REPORT, True)]
    except LaunchRefused as refusal:
        raise ExecutorError(str(refusal)) from refusal
    return tuple(points)


def replaceable_folder(real: str) -> str | None:
    """The first folder above a path in which a tenant's user could rename or remove the next part, or None."""
    parts = real.strip("/").split("/")
    for depth in range(len(parts)):
        folder = "/" + "/".join(parts[:depth])
        child = os.path.join(folder, parts[depth])
        facts = os.stat(folder)
        is_open = bool(facts.st_mode & stat.S_IWOTH) or (
            bool(facts.st_mode & stat.S_IWGRP) and facts.st_gid >= FIRST_USER_ID
        )
        # In a sticky folder only the owner of a part, or of the folder, may take it away.
        if is_open and facts.st_mode & stat.S_ISVTX:
            is_open = os.lstat(child).st_uid >= FIRST_USER_ID
        if is_open or facts.st_uid >= FIRST_USER_ID:
            return folder
    return None


def _checked_target(target: str, run_folder: str) -> str:
    """A path of a launch's own choice inside the container. Raises LaunchRefused where something of ours is."""
    path = os.path.normpath(target)
    taken = (*_NEVER, *SCRATCH, os.path.dirname(WRAPPER), run_folder)
    if not os.path.isabs(target) or path.startswith("//") or any(_is_below(path, own) for own in taken):
        raise LaunchRefused(f"Mount at {target}: give an absolute path outside of {', '.join(taken)}.")
    if any(_is_below(own, path) for own in taken):
        raise LaunchRefused(f"Mount at {target} would hide what a container needs.")
    return path


def _checked(source: str, target: str, writable: bool) -> MountPoint:
    real = os.path.realpath(source)
    try:
        kind = os.stat(real).st_mode
    except OSError as error:
        raise LaunchRefused(f"Mount {source}: {error.strerror}.") from error
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        raise LaunchRefused(f"Mount {source} is neither a folder nor a file.")
    if (folder := replaceable_folder(real)) is not None:
        raise LaunchRefused(
            f"Mount {source}: programs of tenants may write to {folder}, so that they could put something else there."
        )
    return MountPoint(real, os.path.abspath(target), writable)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
