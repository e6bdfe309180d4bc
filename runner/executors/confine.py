"""Take power away from a program before it starts: its user, its capabilities, its view of files and processes.

Run as a script it is the executor's preflight: it tries what a launch would do and prints the isolation that holds.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 1, 4, 38, 24
_LAST_CAPABILITY = 63
_EINVAL = 22
_MAX_OPEN_FILES = 65536
_OOM_SCORE_ADJUSTMENT = 500
#: Any user without rights will do for the preflight; this one belongs to no tenant (owner ids start at 1).
_PREFLIGHT_USER = 200_000

_libc = ctypes.CDLL(None, use_errno=True)


def new_process_namespace() -> None:
    """Put the next child into a process namespace whose first process it is. Raises OSError without the right."""
    _call("unshare(CLONE_NEWPID)", _libc.unshare(_CLONE_NEWPID))


def leave_network() -> None:
    """Give this process a network of its own, in which there is a loopback and nothing else. Raises OSError."""
    _call("unshare(CLONE_NEWNET)", _libc.unshare(_CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def enter_private_view(binds: list[tuple[str, bool]], hidden: list[str], user_id: int) -> None:
    """Give this process a file tree of its own, in which ``binds`` (path, writable) are reachable by the user.

    Each ``hidden`` folder, and each folder the user could not pass on the way to a bind, is covered by an empty one,
    and the binds below come back. /proc shows only this process namespace, whose first process must be the caller.
    Raises OSError.
    """
    _call("unshare(CLONE_NEWNS)", _libc.unshare(_CLONE_NEWNS))
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    real = {path: os.path.realpath(path) for path, _ in binds}
    writable = {real[path]: can_write for path, can_write in sorted(binds, key=lambda bind: bind[1])}
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in writable}
    covers = {os.path.realpath(path) for path in hidden if os.path.isdir(path)} - set(writable)
    covers |= {blocked for path in writable if (blocked := blocking_folder(path, user_id))}
    for path in sorted(covers | set(writable), key=lambda path: path.count("/")):
        if path in covers:
            if os.path.isdir(path):
                _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
        else:
            _bind(sources[path], path, read_only=not writable[path])
    _keep_names(real)
    for descriptor in sources.values():
        os.close(descriptor)
    if os.path.isdir("/dev/shm"):
        _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def blocking_folder(path: str, user_id: int) -> str | None:
    """The outermost folder above a real path which a user (its group has the same number) can not pass, or None."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        folder = "/" + "/".join(parts[:depth])
        status = os.stat(folder)
        bit = stat.S_IXOTH
        if status.st_uid == user_id:
            bit = stat.S_IXUSR
        elif status.st_gid == user_id:
            bit = stat.S_IXGRP
        if not status.st_mode & bit:
            return folder
    return None


def limit_resources(*, max_processes: int | None, max_file_mib: int) -> None:
    """Bound what one process may do, and let the kernel choose it before the platform when memory ends.

    ``max_processes``: threads of its user on the whole host, None where it shares the platform's user.
    """
    if max_processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (max_processes, max_processes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_mib << 20, max_file_mib << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.nice(5)
    # Lowering needs a right that a platform inside a container may lack; raising never does.
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as stream:
        if int(stream.read()) < _OOM_SCORE_ADJUSTMENT:
            stream.write(str(_OOM_SCORE_ADJUSTMENT))


def become_user(user_id: int | None) -> None:
    """Become the user for good: no capability, no other group, no way back. None: stay, but gain nothing by exec."""
    if user_id is not None:
        for capability in range(_LAST_CAPABILITY + 1):
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 and ctypes.get_errno() != _EINVAL:
                _call("prctl(PR_CAPBSET_DROP)", -1)
        os.setgroups([])
        os.setresgid(user_id, user_id, user_id)
        os.setresuid(user_id, user_id, user_id)
    _call("prctl(PR_SET_NO_NEW_PRIVS)", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def die_with_parent(parent: int, signal_number: int) -> None:
    """End this process with a signal when its parent ends. Call it after ``become_user``, which undoes it."""
    _call("prctl(PR_SET_PDEATHSIG)", _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(128 + signal_number)


def show_own_process() -> None:
    """Give the files of this process in /proc to its new user, as the execution of a program would have done."""
    _call("prctl(PR_SET_DUMPABLE)", _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def _bind(source: int, path: str, *, read_only: bool) -> None:
    if not os.path.lexists(path):
        is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
        os.makedirs(path if is_folder else os.path.dirname(path), mode=0o755, exist_ok=True)
        if not is_folder:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
    _mount(f"/proc/self/fd/{source}", path, None, _MS_BIND | _MS_REC)
    if read_only:
        _mount("none", path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID)


def _keep_names(targets: dict[str, str]) -> None:
    """A path that led through a symlink below a covered folder leads there again."""
    for path, target in targets.items():
        if path != target and not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            os.symlink(target, path)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [value.encode() if value is not None else None for value in (source, target, kind, options)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _call(f"mount({target})", result)


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _preflight(python: str, data_folder: str, needed: list[str]) -> str:
    """The strongest isolation in which a user without rights can start the interpreter and read what is needed.

    Without a private view the user must also be able to pass the platform's data folder, where run folders lie.
    """

    def use_everything() -> None:
        become_user(_PREFLIGHT_USER)
        if not os.access(python, os.X_OK):
            raise PermissionError(python)
        for path in needed:
            os.listdir(path)

    def without_private_view() -> None:
        use_everything()
        if not os.access(data_folder, os.X_OK):
            raise PermissionError(data_folder)

    def in_private_view() -> None:
        enter_private_view([(path, False) for path in needed], [], _PREFLIGHT_USER)
        use_everything()

    is_reachable = _succeeds_in_child(without_private_view, "own user")
    without_view = "own_user" if is_reachable else "platform_user"
    try:
        new_process_namespace()
    except OSError:
        return without_view
    return "private_namespaces" if _succeeds_in_child(in_private_view, "private view") else without_view


def _succeeds_in_child(action: Callable[[], None], what: str) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except OSError as error:
            os.write(2, f"{what}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


if __name__ == "__main__":
    sys.stdout.write(_preflight(sys.argv[1], sys.argv[2], sys.argv[3:]))
