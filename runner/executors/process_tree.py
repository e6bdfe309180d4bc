"""What a process has below it: who, how much memory, and how to end all of it. Linux only, through /proc."""

from __future__ import annotations

import ctypes
import os
import signal
import time

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make orphans among our descendants our own children, so that none can escape. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> list[int]:
    """Process ids below ``root`` at this moment, parents before children, without ``root`` itself."""
    found: list[int] = []
    waiting = children(root)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting.extend(children(pid))
    return found


def children(pid: int) -> list[int]:
    """The direct children of a process; empty when it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        found.extend(int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def send(signal_number: int, pids: list[int]) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


def end_all(*, is_init: bool) -> None:
    """Kill and reap every descendant of this process; returns when there is none left.

    This process must be a subreaper, or (``is_init``) the first of its process namespace: then a single
    ``kill(-1)`` reaches all of them, however fast they fork.
    """
    if is_init and os.getpid() != 1:
        raise ValueError("kill(-1) outside of a process namespace of its own would end the whole host")
    while True:
        if is_init:
            send(signal.SIGKILL, [-1])
        else:
            send(signal.SIGKILL, descendants(os.getpid()))
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def memory_mib(pids: list[int], limit_mib: int) -> int:
    """MiB of memory these processes hold that can not be dropped (anonymous and shared, not mapped files).

    Pages shared after a fork are counted once only where the quick sum is over the limit, since that count is slow.
    """
    quick = sum(_sum_kib(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:")) or 0 for pid in pids) // 1024
    if quick <= limit_mib:
        return quick
    exact = 0
    for pid in pids:
        share = _sum_kib(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
        exact += share if share is not None else _sum_kib(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:")) or 0
    return exact // 1024


def threads_of_user(user_id: int) -> int:
    """How many threads this user has on the host now: RLIMIT_NPROC counts them all together."""
    count = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == user_id:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:
            continue
    return count


def kernel_memory_kills() -> int:
    """How many processes the kernel has killed for memory since the host booted."""
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _sum_kib(path: str, keys: tuple[str, ...]) -> int | None:
    values = [int(line.split()[1]) for line in _read(path).splitlines() if line.startswith(keys)]
    return sum(values) if values else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
