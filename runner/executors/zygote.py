"""The zygote: ``python -m runner.executors.zygote FOLDER KEY PRELOAD IDLE_S``. It imports once and forks for each run.

An order is three descriptors: an attempt's control sub-folder, where to tell that its program was started, and the
wrapper's log. The zygote reads none of them: what it knew, each later program would find in its memory. What it forks
is the attempt's wrapper, which does all that a cold one does. Only where the keeper would execute an interpreter, its
child goes on as the program (``become``).
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from runner.executors import control, warm, wrapper
from runner.executors.become import Image, close_descriptors
from runner.executors.title import show_as

_LOCK_PATIENCE_S = 10.0
_TICK_S = 5.0
_SILENCE_S = 1.0
_MAX_MEMORY_MIB = 2048
_HUGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25


def main(folder: Path, key: str, preload: str, idle_s: float) -> None:
    """Import, look whether forks of this process would be like new ones, and serve until nobody needs it."""
    if os.fork() != 0:
        os._exit(0)
    lock = _take_lock(folder / warm.LOCK)
    if lock is None:
        return
    image = Image()
    importlib.import_module(preload).preload()
    image.complete()
    if why := _unfit(allowed={0, 1, 2, lock}):
        control.write_json(folder / warm.MARK, warm.mark(key, why))
        raise SystemExit(f"no zygote: {why}")
    gc.collect()
    gc.freeze()
    _use_huge_pages()
    zygote = Zygote(folder, key, preload, idle_s, image)
    (folder / warm.MARK).unlink(missing_ok=True)
    zygote.serve()


class Zygote:
    """Serves orders of one key, one after the other."""

    def __init__(self, folder: Path, key: str, preload: str, idle_s: float, image: Image) -> None:
        self._folder = folder
        self._key = key
        self._preload = preload
        self._idle_s = idle_s
        self._image = image
        self._used_at = time.monotonic()
        self._listener = _listen(folder)
        self._socket = os.stat(folder / warm.SOCKET)

    def serve(self) -> None:
        """Fork for each order, until it has been idle for long, or code, packages or its folder have changed."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for wrappers
        is_wanted = self._is_wanted()
        while is_wanted:
            if select.select([self._listener], [], [], min(_TICK_S, self._idle_s))[0]:
                is_wanted = self._answer()  # the order's key tells of changes
            else:
                is_wanted = self._is_wanted()

    def _is_wanted(self) -> bool:
        try:
            is_there = os.path.samestat(os.stat(self._folder / warm.SOCKET), self._socket)
        except OSError:
            return False
        return (
            is_there
            and time.monotonic() - self._used_at < self._idle_s
            and warm.fingerprint(sys.executable, self._image.shared, self._preload) == self._key
        )

    def _answer(self) -> bool:
        """Serve one client; False when it wants something that this zygote is not."""
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_SILENCE_S)
            try:
                told, descriptors, _, _ = socket.recv_fds(connection, 256, 3)
            except OSError:
                return True
            try:
                if not told:  # the client died
                    return True
                if told != self._key.encode() or len(descriptors) != 3:
                    return False
                if os.fork() == 0:
                    _attend(descriptors, self._image)
                self._used_at = time.monotonic()
                connection.sendall(warm.TAKEN)
            except OSError as error:  # no room for another process, or the client has gone
                sys.stderr.write(f"an order was not served: {error}\n")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return True


def _attend(descriptors: Sequence[int], image: Image) -> NoReturn:
    """In the fork: be the wrapper of the attempt whose folder the first descriptor is."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        folder = Path(os.readlink(f"/proc/self/fd/{descriptors[0]}"))
        os.dup2(descriptors[1], 1)
        os.dup2(descriptors[2], 2)
        close_descriptors()
        show_as([sys.executable, str(wrapper.__file__), str(folder)])
        wrapper.attend(folder, image.become)
    except BaseException:  # this fork must end here, whatever happened
        traceback.print_exc()
    finally:
        os._exit(0)


def _take_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a folder's zygote; None while another one stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def _listen(folder: Path) -> socket.socket:
    """A socket in the folder, which only the platform's user may enter. Its path may be longer than an address."""
    os.chdir(folder)
    (folder / warm.SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(warm.SOCKET)
    listener.listen(64)
    os.chdir("/")
    return listener


def _unfit(allowed: set[int]) -> str:
    """Why forks of this process would share or lack something that new processes do not; empty when they would not."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"{threads} threads run after the imports, and a fork has one"
    with os.scandir("/proc/self/fd") as entries:
        extra = {int(entry.name) for entry in entries} - allowed
    if extra := {number for number in extra if _is_open(number)}:
        return f"descriptors {sorted(extra)} are open after the imports"
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    if shared := [line for line in maps if line.split()[1].startswith("rw") and line.split()[1].endswith("s")]:
        return f"memory is shared with forks: {shared[0]}"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has opened the GPU, which a fork can not use"
    used_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if used_mib > _MAX_MEMORY_MIB:
        return f"the imports take {used_mib} MiB, more than {_MAX_MEMORY_MIB}"
    return ""


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _use_huge_pages() -> None:
    """Have a fork copy a few hundred entries of the page table and not a hundred thousand. Costs nothing to lack it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[1] != "rw-p" or (len(fields) > 5 and fields[5] != "[heap]"):
            continue
        start, end = (int(edge, 16) for edge in fields[0].split("-"))
        for page in range(-(-start // _HUGE_PAGE) * _HUGE_PAGE, end - _HUGE_PAGE + 1, _HUGE_PAGE):
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(_HUGE_PAGE), _MADV_COLLAPSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]))
