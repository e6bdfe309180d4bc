"""Runs attempts as detached processes of this host: no daemon, no Docker; root only for users of their own."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.contract import folder as names
from runner.executors import control, warm
from runner.executors.base import ExecutorError, Launch, LaunchRefused, Observation
from runner.executors.confine import blocking_folder
from runner.executors.control import Bind, Isolation, Order
from runner.executors.launching import (
    NAME,
    REPOSITORY,
    check_launch,
    check_readable,
    interpreter_folders,
    program_environment,
)

_FIRST_USER_ID = 200_000
_START_PATIENCE_S = 60.0
_DEBRIS_AGE_S = 3600.0
#: How often the control folder is looked at for ends: one stat for each attempt.
_RING_EVERY_S = 0.2


class LocalProcessExecutor:
    """An ``Executor``. ``control_folder`` is the platform's alone and must survive a reboot with the database."""

    def __init__(
        self,
        control_folder: Path,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        *,
        hidden: tuple[Path, ...] = (),
        max_log_mib: int = 1024,
        warm_idle_s: float = 0,
        preload: str = warm.PRELOAD,
    ) -> None:
        """``environment`` goes to every program; ``hidden`` folders (the platform's data) are empty for programs.

        ``warm_idle_s``: how long a zygote waits for its next order; 0: every program starts cold.
        """
        self._control = Path(os.path.abspath(control_folder))
        self._control.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._control.chmod(0o700)
        self._python = python
        self._environment = dict(environment or {})
        self._hidden = (str(self._control), *(os.path.abspath(path) for path in hidden))
        self._max_log_mib = max_log_mib
        self._isolation: Isolation | None = None
        self._interpreter = [str(REPOSITORY), *interpreter_folders(python)]
        zygotes = warm.Zygotes(self._control, python, idle_s=warm_idle_s, preload=preload)
        self._zygotes = zygotes if warm_idle_s > 0 else None

    def isolation(self) -> Isolation:
        """How far programs are kept from the platform and each other on this host. Raises ExecutorError."""
        if self._isolation is None:
            self._isolation = self._preflight() if os.geteuid() == 0 else "platform_user"
        return self._isolation

    def start(self, launch: Launch) -> None:
        """Start the attempt or adopt it; returns once the program is started, or was before.

        Raises LaunchRefused, ExecutorError.
        """
        check_launch(launch)
        if launch.spec.image is not None and launch.spec.program is None:
            raise LaunchRefused(
                f"Image {launch.spec.image.id}: this executor runs no images. Use a resource group with Docker."
            )
        folder = self._control / launch.name
        zygotes = self._zygotes if self._can_be_warm(launch) else None
        order = self._write_intent(folder, launch)
        if control.is_start_forbidden(self._control, launch.name):
            self.stop(launch.name, 0)
        if _is_decided(folder):
            return
        is_warm = zygotes is not None and zygotes.ask(folder, order.environment)
        told = self._spawn_wrapper(folder) if not _is_decided(folder) else ""
        if zygotes is not None and not is_warm:
            zygotes.make(order.environment)
        if not _is_decided(folder):
            raise ExecutorError(
                f"Attempt {launch.name} was not started within {_START_PATIENCE_S:g} s: {told or 'no word from it'}. "
                "Starting it again is safe."
            )

    def list(self) -> list[Observation]:
        """Every attempt not yet removed. Raises ExecutorError."""
        found = []
        try:
            for entry in sorted(os.scandir(self._control), key=lambda entry: entry.name):
                if entry.name in (warm.FOLDER, control.NEVER):
                    continue
                if entry.name.startswith("."):
                    self._forget_debris(entry)
                elif (observation := _observe(Path(entry.path))) is not None:
                    found.append(observation)
        except OSError as error:
            raise ExecutorError(f"The control folder {self._control} can not be read: {error}") from error
        return found

    def stop(self, name: str, grace_s: float) -> None:
        """TERM, then KILL after ``grace_s`` seconds; a later stop can only shorten it. Raises ExecutorError."""
        folder = self._folder(name)
        try:
            if not folder.exists():
                control.forbid_start(self._control, name)
            known = control.read_json(folder / control.STOP)
            if known is None or grace_s < known["grace_s"]:
                control.write_json(folder / control.STOP, {"grace_s": max(0.0, grace_s)})
            with control.quiet(folder, exclusive=True) as is_quiet:
                if is_quiet and not _is_decided(folder):
                    _record_stopped_before_start(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ExecutorError(f"The stop of {name} can not be recorded: {error}") from error

    def remove(self, name: str) -> None:
        """Forget an exited attempt. Raises ExecutorError while it lives or may still start."""
        folder = self._folder(name)
        observation = _observe(folder)
        if observation is None and not folder.exists():
            return
        if observation is not None and observation.state != "exited":
            raise ExecutorError(f"Attempt {name} is {observation.state}: stop it, then remove it.")
        debris = self._control / f".gone-{secrets.token_hex(8)}"
        try:
            folder.rename(debris)
            shutil.rmtree(debris)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ExecutorError(f"Attempt {name} can not be removed: {error}") from error

    def rings(self) -> Iterator[None]:
        """Yields when a wrapper has written something. Raises ExecutorError."""
        known = self._changed_at()
        while True:
            time.sleep(_RING_EVERY_S)
            now = self._changed_at()
            if now != known:
                known = now
                yield

    def _changed_at(self) -> dict[str, int]:
        """When a file of each attempt was last put into its sub-folder."""
        found = {}
        try:
            for entry in os.scandir(self._control):
                if entry.name.startswith("."):
                    continue
                with suppress(FileNotFoundError):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
        except OSError as error:
            raise ExecutorError(f"The control folder {self._control} can not be read: {error}") from error
        return found

    def cool_down(self) -> None:
        """Let the zygote go; what it has started goes on, and the next launch makes a new one."""
        if self._zygotes is not None:
            self._zygotes.end()

    def _can_be_warm(self, launch: Launch) -> bool:
        return warm.can_be_warm(launch)

    def _folder(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ExecutorError(f"{name!r} is no attempt name: letters, digits, '.', '_', '-', at most 128.")
        return self._control / name

    def _write_intent(self, folder: Path, launch: Launch) -> Order:
        """The sub-folder appears whole, under its name, or not at all. Raises LaunchRefused for other work."""
        if not folder.exists():
            if _result_of(launch.run_folder, launch.rank, launch.name) is not None:
                raise LaunchRefused(f"Attempt {launch.name} has ended and was removed; a retry needs a new name.")
            order = self._order(launch)
            new = self._control / f".new-{secrets.token_hex(8)}"
            try:
                new.mkdir(mode=0o700)
                (new / control.LOCK).touch(mode=0o600)
                control.write_json(new / control.LAUNCH, order.to_json())
                new.rename(folder)
                names.fsync_folder(self._control)
            except OSError as error:
                shutil.rmtree(new, ignore_errors=True)
                if not folder.exists():
                    raise ExecutorError(f"The intent of {launch.name} can not be written: {error}") from error
        known = control.read_json(folder / control.LAUNCH)
        if known is None or known["spec_digest"] != launch.spec.digest():
            raise LaunchRefused(f"Attempt name {launch.name} was already used for other work; use a new name.")
        return Order.from_json(known)

    def _order(self, launch: Launch) -> Order:
        spec = launch.spec
        run_folder = os.path.abspath(launch.run_folder)
        binds = [Bind(path) for path in self._interpreter]
        if any(mount.target for mount in spec.mounts):
            raise LaunchRefused("Volumes at paths of their own need a container. Use a resource group with Docker.")
        binds += [Bind(mount.source, mount.writable) for mount in spec.mounts]
        binds.append(Bind(run_folder, writable=True))
        isolation = self.isolation()
        user_id = None if isolation == "platform_user" else _FIRST_USER_ID + launch.owner_id
        if user_id is not None:
            check_readable(launch, user_id)
        if isolation == "own_user":
            _check_passable([run_folder, *(mount.source for mount in spec.mounts)], _FIRST_USER_ID + launch.owner_id)
        return Order(
            attempt=launch.name,
            spec_digest=spec.digest(),
            run_folder=run_folder,
            rank=launch.rank,
            argv=spec.argv or (self._python, "-m", str(spec.program), run_folder),
            environment=program_environment(launch, self._python) | self._environment | spec.environment,
            isolation=isolation,
            user_id=user_id,
            binds=tuple(binds),
            hidden=self._hidden,
            memory_mib=launch.wanted.memory_mib,
            time_limit_s=spec.limits.time_limit_s,
            stop_grace_s=spec.limits.stop_grace_s,
            max_processes=spec.limits.max_processes,
            max_file_mib=spec.limits.max_file_mib,
            max_log_mib=self._max_log_mib,
            labels=launch.labels,
            start_in=spec.start_in,
            # Own code that makes data listens nowhere; all other runs may need this machine's loopback.
            has_network=spec.needs_network or spec.kind != "data" or spec.program is not None,
        )

    def _spawn_wrapper(self, folder: Path) -> str:
        """Start a wrapper and wait until it has started the program or given up; its last words when it gave up.

        The wrapper closes its standard output when the program counts as started. It gets no environment of ours.
        """
        try:
            with open(folder / control.WRAPPER_LOG, "ab") as words:
                process = subprocess.Popen(
                    [self._python, "-I", "-S", str(REPOSITORY / "runner/executors/wrapper.py"), str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    cwd="/",
                    env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                    start_new_session=True,
                )
            assert process.stdout is not None
            with process.stdout as started:
                process.wait()
                select.select([started], [], [], _START_PATIENCE_S)
            return (folder / control.WRAPPER_LOG).read_text(encoding="utf-8", errors="replace")[-600:].strip()
        except OSError as error:
            raise ExecutorError(f"The wrapper of {folder.name} can not be started: {error}") from error

    def _preflight(self) -> Isolation:
        script = str(REPOSITORY / "runner/executors/confine.py")
        command = [self._python, "-I", "-S", script, self._python, str(self._control.parent), *self._interpreter]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": os.defpath})
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExecutorError(f"The isolation of programs can not be found out: {error}") from error
        for known in ("private_namespaces", "own_user", "platform_user"):
            if done.stdout.strip() == known:
                return known
        raise ExecutorError(f"The isolation of programs can not be found out: {done.stderr[-600:]}")

    def _forget_debris(self, entry: os.DirEntry[str]) -> None:
        """What a crash between two steps left behind, once nobody can still be busy with it."""
        try:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DEBRIS_AGE_S:
                shutil.rmtree(entry.path, ignore_errors=True)
        except FileNotFoundError:
            return


def _check_passable(paths: list[str], user_id: int) -> None:
    """Raise ExecutorError, for the operator, where a closed folder keeps the program out of what it needs."""
    for path in paths:
        if (folder := blocking_folder(os.path.realpath(path), user_id)) is not None:
            raise ExecutorError(
                f"User {user_id} of the program can not pass {folder} on the way to {path}, and this host allows no "
                f"private view of files. Run: chmod o+x {folder}"
            )


def _observe(folder: Path) -> Observation | None:
    """What the files of a sub-folder say; None when it is gone or never was an attempt's."""
    order = control.read_json(folder / control.LAUNCH)
    if order is None:
        return None
    seen = Observation(folder.name, "starting", order["spec_digest"])
    try:
        with control.quiet(folder) as is_quiet:
            started = control.read_json(folder / control.STARTED)
            result = control.read_json(folder / control.RESULT)
    except FileNotFoundError:
        return None
    if result is None and is_quiet:
        result = _result_of(Path(order["run_folder"]), order["rank"], folder.name)
    if result is not None:
        keys = ("exit_code", "cause", "started_at", "ended_at", "max_memory_mib")
        return replace(seen, state="exited", **{key: result[key] for key in keys})
    if started is None:
        return seen
    if not is_quiet and started["boot_id"] == control.boot_id():
        return replace(seen, state="running", started_at=started["started_at"])
    return replace(seen, state="exited", cause="lost", started_at=started["started_at"])


def _is_decided(folder: Path) -> bool:
    """The program was started, or never will be."""
    return (folder / control.STARTED).exists() or (folder / control.RESULT).exists()


def _result_of(run_folder: Path, rank: int, name: str) -> dict[str, Any] | None:
    """The result in a run folder if it is this attempt's; an earlier attempt may have left its own."""
    result = control.read_json(run_folder / names.result_name(rank))
    return result if result is not None and result.get("attempt") == name else None


def _record_stopped_before_start(folder: Path) -> None:
    order = control.read_json(folder / control.LAUNCH)
    if order is None:
        return
    result = {
        "attempt": folder.name,
        "spec_digest": order["spec_digest"],
        "exit_code": None,
        "cause": "stopped",
        "message": "stopped before it started",
        "started_at": None,
        "ended_at": time.time(),
        "max_memory_mib": None,
        "log_truncated": False,
    }
    control.write_json(folder / control.RESULT, result)
