"""How a fork of the zygote goes on as a program, with all that ``python -m PROGRAM`` would have had of its own."""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NoReturn

from runner.executors import confine, warm
from runner.executors.control import Order
from runner.executors.keeper import execute
from runner.executors.title import show_as


class Image:
    """What the zygote was before and after its imports. ``shared``: the environment that all its programs must have."""

    def __init__(self) -> None:
        self._before = dict(os.environ)
        self._home = self._before["HOME"]
        self.shared = warm.shared(self._before)
        self._set_by_imports: dict[str, str] = {}
        self._places: list[tuple[Any, str, Any]] = []

    def complete(self) -> None:
        """Take down what the imports have put into the environment, and where they have kept a path of the home."""
        self._set_by_imports = {name: value for name, value in os.environ.items() if self._before.get(name) != value}
        self._places = list(_places_of(self._home))

    def become(self, order: Order) -> NoReturn:
        """Go on as the program of an order; where that can not be, execute it as a cold start does. Raises OSError."""
        try:
            self._put_on(order)
        except Exception:
            traceback.print_exc()
            execute(order)
        _run(order.argv[2], order.argv[3:])

    def _put_on(self, order: Order) -> None:
        """Environment, paths, signals, descriptors, randomness and threads of a new process. Raises ValueError."""
        given = order.environment
        if order.argv[:2] != (sys.executable, "-m") or warm.shared(given) != self.shared:
            raise ValueError("this zygote was made for another interpreter or environment")
        if given["TMPDIR"] != os.path.join(given["HOME"], "tmp"):
            raise ValueError("TMPDIR is not in HOME")
        os.environ.clear()
        os.environ.update({**self._set_by_imports, **given})
        for owner, name, value in self._places:
            setattr(owner, name, type(value)(str(value).replace(self._home, given["HOME"])))
        tempfile.tempdir = None
        _take_signals()
        close_descriptors()
        confine.show_own_process()
        show_as(order.argv)
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if numpy is not None:  # the standard library's own generator is seeded at each fork
            numpy.random.seed()
        if torch is not None:
            torch.set_num_threads(int(given["OMP_NUM_THREADS"]))


def close_descriptors() -> None:
    """Close all but the three standard ones. Raises OSError."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:  # the one that listed them
                continue


def _take_signals() -> None:
    """What an interpreter sets when it starts."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _run(program: str, arguments: tuple[str, ...]) -> NoReturn:
    """Run a module as ``__main__`` and end the process as an interpreter would."""
    sys.argv = [program, *arguments]
    sys.modules.pop(program, None)  # it may have been imported for what it shares with others
    code = 1
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 128 + signal.SIGINT
    except BaseException:  # the top of a program
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # as in the forks of multiprocessing
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _places_of(home: str) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value) of each variable of a module or a class that holds a path below ``home``."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if _is_path_of(value, home):
                yield module, name, value
            elif issubclass(type(value), type) and value.__module__ == getattr(module, "__name__", ""):
                for inner, held in list(vars(value).items()):
                    if _is_path_of(held, home):
                        yield value, inner, held


def _is_path_of(value: object, home: str) -> bool:
    # By its type: some objects of libraries answer isinstance() with a warning.
    return issubclass(type(value), str | PurePath) and home in str(value)
