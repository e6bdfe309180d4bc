"""What must hold before any process is made for a launch, and the environment a program gets."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

from runner.contract import folder as names
from runner.executors.base import Gang, Launch, LaunchRefused

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PROGRAM = re.compile(r"runner\.programs(\.[A-Za-z_][A-Za-z0-9_]*)+")
_MAX_CHECKED_FILES = 10_000


def check_launch(launch: Launch) -> None:
    """Raise LaunchRefused, in words for the user, for what could never start."""
    if not NAME.fullmatch(launch.name):
        raise LaunchRefused(f"Attempt name {launch.name!r}: letters, digits, '.', '_', '-' are allowed, at most 128.")
    if launch.owner_id < 1:
        raise LaunchRefused(f"owner_id {launch.owner_id} is no tenant: it must be 1 or more.")
    if not os.path.isdir(launch.run_folder) or os.path.islink(launch.run_folder):
        raise LaunchRefused(f"Run folder {launch.run_folder} does not exist or is not a folder.")
    _check_command(launch)
    for mount in launch.spec.mounts:
        if not os.path.isabs(mount.source) or not os.path.exists(mount.source):
            raise LaunchRefused(f"Mount {mount.source} does not exist on this host, or is not an absolute path.")
    for key, value in launch.spec.environment.items():
        if not key or "=" in key or "\0" in key + value:
            raise LaunchRefused(f"Environment variable {key!r}: names are not empty, without '=' and zero bytes.")


def check_readable(launch: Launch, user_id: int) -> None:
    """Raise LaunchRefused naming the first mounted file which the program's own user may not read.

    Folders above a mount do not count, since they may be closed on purpose.
    """
    for mount in launch.spec.mounts:
        if not mount.writable and (path := _first_unreadable(mount.source, user_id)) is not None:
            raise LaunchRefused(
                f"Mount {mount.source}: {path} can not be read by the program's user {user_id}. "
                "Store it with mode 0644 (folders 0755); a closed folder above it keeps strangers out."
            )


def program_environment(launch: Launch, python: str) -> dict[str, str]:
    """The environment of a program, made from nothing: no secret of the platform can be in it."""
    spec, work = launch.spec, os.path.join(os.path.abspath(launch.run_folder), names.WORK)
    environment = {
        "PATH": f"{os.path.dirname(python)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": work,
        # The user has no entry in /etc/passwd; libraries that ask for a name look here first.
        "USER": "clavier",
        "LOGNAME": "clavier",
        "TMPDIR": os.path.join(work, "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, launch.wanted.cpu_milli // 1000)),
    }
    if spec.program is not None:
        # Files that a program leaves in its current folder must not hide modules.
        environment |= {"PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"}
    if not spec.needs_network:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(launch.gpus)
    return environment | gang_environment(launch.gang)


def gang_environment(gang: Gang | None) -> dict[str, str]:
    """How the containers of a multi-node run find each other.

    ``PET_*`` are ``torchrun``'s own options by environment; the others are those of the usual operators of clusters,
    counted in containers (``torchrun`` sets its own for each process).
    """
    if gang is None:
        return {}
    size, rank, port = str(gang.size), str(gang.rank), str(gang.master_port)
    return {
        "MASTER_ADDR": gang.master_address,
        "MASTER_PORT": port,
        "WORLD_SIZE": size,
        "RANK": rank,
        "PET_NNODES": size,
        "PET_NODE_RANK": rank,
        "PET_MASTER_ADDR": gang.master_address,
        "PET_MASTER_PORT": port,
    }


def interpreter_folders(python: str) -> list[str]:
    """The folders an interpreter lives in: where it is, and for a virtual environment also where it came from."""
    prefixes = {sys.prefix, sys.base_prefix, sys.base_exec_prefix} if python == sys.executable else set()
    for executable in (os.path.abspath(python), os.path.realpath(python)):
        prefixes.add(os.path.dirname(os.path.dirname(executable)))
    return sorted(prefixes - {"/"})


def _check_command(launch: Launch) -> None:
    spec = launch.spec
    if (spec.program is None) == (not spec.argv):
        raise LaunchRefused("A run has either a program or a command (argv); this one has both or none.")
    if spec.program is None:
        if any("\0" in word for word in spec.argv) or not spec.argv[0]:
            raise LaunchRefused("The command (argv) has an empty first word or a zero byte.")
        return
    module = REPOSITORY.joinpath(*spec.program.split("."))
    if not _PROGRAM.fullmatch(spec.program) or not (
        module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    ):
        raise LaunchRefused(f"Program {spec.program!r} does not exist below runner.programs.")
    if not (launch.run_folder / names.SPEC).is_file():
        raise LaunchRefused(f"{launch.run_folder / names.SPEC} is missing: a program reads its parameters there.")


def _first_unreadable(source: str, user_id: int) -> str | None:
    real = os.path.realpath(source)
    if not _may_read(real, user_id):
        return real
    seen = 0
    for folder, folders, files in os.walk(real):
        for name in folders + files:
            path = os.path.join(folder, name)
            seen += 1
            if seen > _MAX_CHECKED_FILES:
                return None
            if not os.path.islink(path) and not _may_read(path, user_id):
                return path
    return None


def _may_read(path: str, user_id: int) -> bool:
    status = os.stat(path)
    bits = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else 0)
    if status.st_uid == user_id:
        bits <<= 6
    elif status.st_gid == user_id:
        bits <<= 3
    return status.st_mode & bits == bits
