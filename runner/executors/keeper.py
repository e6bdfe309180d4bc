"""The keeper: a process between wrapper and program, so that nothing survives the death of either.

It is forked from the wrapper, is the first process of the program's namespace (or a subreaper), starts the program,
reaps what is orphaned, and kills everything below it when the program ends or the wrapper is gone. It shares the
wrapper's lock, which is therefore free only once every process of the attempt is dead.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from runner.executors import confine, process_tree
from runner.executors.control import Order

_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


@dataclass(frozen=True, slots=True)
class Pipes:
    """The keeper's ends: the program's output, one JSON report to the wrapper, end of file when the wrapper dies."""

    output: int
    report: int
    lifeline: int


def execute(order: Order) -> NoReturn:
    """Replace this process by the program of an order. Raises OSError."""
    os.execvpe(order.argv[0], order.argv, order.environment)


def keep(order: Order, folder: str, pipes: Pipes, become: Callable[[Order], NoReturn] = execute) -> NoReturn:
    """Run the program of an order in ``folder`` to its end, report ``status``, ``not_run`` or ``failure``, and exit.

    ``become`` makes the prepared child the program.
    """
    is_init = order.isolation == "private_namespaces"
    try:
        wake = _wake_on_child_exit()
        max_processes = None
        if order.user_id is not None:  # counted before the private view hides the other processes of the user
            max_processes = process_tree.threads_of_user(order.user_id) + order.max_processes
        if is_init and order.user_id is not None:
            binds = [(bind.path, bind.writable) for bind in order.binds]
            confine.enter_private_view(binds, list(order.hidden), order.user_id)
            if not order.has_network:
                confine.leave_network()
        else:
            process_tree.become_subreaper()
        pid, refusal = _start(order, folder, pipes.output, max_processes, become)
        os.close(pipes.output)
        if refusal is not None:
            _report(pipes.report, refusal)
        else:
            _report(pipes.report, {"status": _wait(pid, pipes.lifeline, wake)})
    except Exception as error:  # a process without a caller: the report is the only way to say it
        _report(pipes.report, {"failure": f"{type(error).__name__}: {error}"})
    finally:
        process_tree.end_all(is_init=is_init)
        os._exit(0)


class _WrapperGone(Exception):
    """The wrapper has died; nobody reads the report any more."""


def _wake_on_child_exit() -> int:
    """A descriptor that becomes readable when a child has ended."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _start(
    order: Order, folder: str, output: int, max_processes: int | None, become: Callable[[Order], NoReturn]
) -> tuple[int, dict[str, Any] | None]:
    """Fork the program: its process id, and why it did not run if it did not."""
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become_program(order, folder, output, writer, parent, max_processes, become)
    os.close(writer)
    with open(reader, "rb") as stream:
        told = stream.read()
    return pid, json.loads(told) if told else None


def _become_program(
    order: Order,
    folder: str,
    output: int,
    refusals: int,
    parent: int,
    max_processes: int | None,
    become: Callable[[Order], NoReturn],
) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        os.umask(0o022)
        confine.limit_resources(max_processes=max_processes, max_file_mib=order.max_file_mib)
        confine.become_user(order.user_id)
        confine.die_with_parent(parent, signal.SIGKILL)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        try:
            become(order)
        except OSError as error:
            code = _NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else _NOT_EXECUTABLE
            _report(refusals, {"not_run": code, "reason": f"{order.argv[0]}: {error.strerror}"})
    except Exception as error:  # this forked process must end here whatever happened
        _report(refusals, {"failure": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(_NOT_FOUND)


def _wait(program: int, lifeline: int, wake: int) -> int:
    """Reap until the program ends; its exit code, negative for a signal. Raises _WrapperGone."""
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    poller.register(wake, select.POLLIN)
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == program:
            return os.waitstatus_to_exitcode(status)
        if pid:
            continue
        for descriptor, _ in poller.poll():
            if descriptor == lifeline:
                raise _WrapperGone
            os.read(wake, 4096)


def _report(descriptor: int, value: dict[str, Any]) -> None:
    try:
        os.write(descriptor, json.dumps(value).encode())
    except BrokenPipeError:
        return
