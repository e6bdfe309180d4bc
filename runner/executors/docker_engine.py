"""Runs attempts as containers of one Docker Engine, whose profile is ``docker_profile``'s.

The engine must see the run folders, mounted folders and ``control_folder`` under the same paths as this process.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.contract import folder as names
from runner.contract.trees import remove_tree
from runner.executors import control
from runner.executors.base import ExecutorError, Launch, LaunchRefused, Observation, StoredImage
from runner.executors.docker_attempt import AttemptFolder, Intent, was_started
from runner.executors.docker_client import Engine
from runner.executors.docker_containers import Containers, container_name
from runner.executors.docker_images import EngineImages, ImageUnfit
from runner.executors.docker_mounts import mounts_of, refuse_machine
from runner.executors.docker_networks import Networks
from runner.executors.docker_observer import Observer, settle
from runner.executors.docker_profile import ProfileMismatch, Surroundings, container_profile, user_of
from runner.executors.docker_wrapper import ensure_wrapper
from runner.executors.launching import NAME, REPOSITORY, check_launch, check_readable
from runner.executors.run_folder import lend, prepare
from runner.executors.verdict import Verdict

_STOP_PATIENCE_S = 2.0
_MAX_SOCKET_PATH_BYTES = 107
_DEBRIS_AGE_S = 3600.0


class DockerEngineExecutor:
    """An ``Executor`` and an ``ImageStore``. ``control_folder`` is the platform's alone and outlives a reboot."""

    def __init__(
        self,
        control_folder: Path,
        *,
        install_id: str,
        engine_url: str = "",
        program_image: str = "",
        serve_image: str = "",
        program_python: str = "/usr/bin/python3",
        program_binds: tuple[str, ...] = (),
        repository: Path | None = REPOSITORY,
        environment: Mapping[str, str] | None = None,
        closed: tuple[Path, ...] = (),
        wrapper: str = "",
        max_log_mib: int = 1024,
        timeout_s: float = 60.0,
    ) -> None:
        """``engine_url`` empty: DOCKER_HOST, else this machine's socket.

        ``program_image`` (id or tag) runs the platform's programs with ``program_python``, ``serve_image`` instead the
        servers on GPUs; ``program_binds`` are further host folders they need, read-only. ``repository``: whose
        ``runner`` is bound over the image's, None where images carry it. ``closed`` folders (the platform's data) are
        never lent as a whole. ``wrapper``: a ready one, so that no compiler is needed.
        """
        self._control = Path(os.path.abspath(control_folder))
        self._control.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._control.chmod(0o700)
        self._install_id = install_id
        self._engine = Engine(engine_url, timeout_s)
        self._images = EngineImages(self._engine, self._control / ".images")
        self._networks = Networks(self._engine, install_id)
        self._program_image = program_image
        self._serve_image = serve_image or program_image
        self._image_ids: dict[str, str] = {}
        self._python = program_python
        self._image_has_programs = repository is None
        self._programs = tuple(program_binds) + ((str(repository / "runner"),) if repository is not None else ())
        self._environment = dict(environment or {})
        self._closed = (str(self._control), *(os.path.abspath(path) for path in closed))
        self._wrapper = wrapper
        self._max_log_mib = max_log_mib
        self._containers = Containers(self._engine, install_id)
        self._observer = Observer(self._engine)

    def start(self, launch: Launch) -> None:
        """Start the attempt or adopt it. It may still be ``starting`` afterwards, while its image is being loaded.

        Raises LaunchRefused, ExecutorError.
        """
        check_launch(launch)
        _check_for_containers(launch)
        folder = AttemptFolder(self._control / launch.name)
        if folder.intent() is None and _result_of(launch) is not None:
            raise LaunchRefused(f"Attempt {launch.name} has ended and was removed; a retry needs a new name.")
        folder.create(_intent_of(launch))
        intent = folder.intent()
        if intent is None or intent.spec_digest != launch.spec.digest():
            raise LaunchRefused(f"Attempt name {launch.name} was already used for other work; use a new name.")
        try:
            if control.is_start_forbidden(self._control, launch.name):
                folder.ask_stop(0)
            with folder.locked():
                self._bring_up(folder, intent, launch)
        except LaunchRefused:
            if folder.container_id() is None:
                with suppress(OSError):
                    remove_tree(folder.path)
            raise
        except OSError as error:
            raise ExecutorError(f"Attempt {launch.name} can not be started: {error}") from error

    def images(self) -> list[StoredImage]:
        """Images of this installation on this engine."""
        return self._images.images()

    def has_image(self, image_id: str) -> bool:
        """Whether the engine has an image."""
        return self._images.has_image(image_id)

    def remove_image(self, image_id: str) -> None:
        """No longer keep an image."""
        self._images.remove_image(image_id)

    def list(self) -> list[Observation]:
        """Every attempt not yet removed, by one list call of the engine. Raises ExecutorError."""
        # Folders first: a container that is made after this line is then only seen later, never missed.
        try:
            entries = sorted(os.scandir(self._control), key=lambda entry: entry.name)
            folders = {entry.name: AttemptFolder(Path(entry.path)) for entry in entries if entry.name[0] != "."}
            made = {name for name, folder in folders.items() if folder.container_id() is not None}
            for entry in entries:
                _forget_debris(entry)
        except OSError as error:
            raise ExecutorError(f"The control folder {self._control} can not be read: {error}") from error
        containers = self._containers.all()
        found = []
        for name in sorted(folders.keys() | containers.keys()):
            folder = folders.get(name) or AttemptFolder(self._control / name)
            seen = self._observer.observe(folder, containers.get(name), was_made=name in made)
            if seen is not None:
                found.append(seen)
        return found

    def stop(self, name: str, grace_s: float) -> None:
        """TERM, then KILL after ``grace_s`` seconds; a later stop can only shorten it. Raises ExecutorError."""
        folder = self._folder(name)
        try:
            if folder.intent() is None:
                control.forbid_start(self._control, name)
        except OSError as error:
            raise ExecutorError(f"The stop of {name} can not be recorded: {error}") from error
        intent = folder.intent()
        if intent is None:
            # Without its folder the wrapper can not be told; a container of ours that is left over just ends.
            if (stray := self._containers.find(name)) is not None:
                self._engine.signal(stray["Id"], "KILL")
            return
        if folder.result() is not None:
            return
        try:
            folder.ask_stop(grace_s)
            with suppress(ExecutorError), folder.locked(_STOP_PATIENCE_S):
                self._stop_unstarted(folder, intent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ExecutorError(f"The stop of {name} can not be recorded: {error}") from error
        # The signal only wakes the wrapper, which looks for its orders anyway.
        if (container_id := folder.container_id()) is not None:
            with suppress(ExecutorError):
                self._engine.signal(container_id, "TERM")

    def remove(self, name: str) -> None:
        """Forget an exited attempt. Raises ExecutorError while it lives or may still start."""
        folder = self._folder(name)
        intent = folder.intent()
        container = self._containers.find(name)
        if container is not None and container["State"]["Running"]:
            raise ExecutorError(f"Attempt {name} is running: stop it, then remove it.")
        if intent is not None and folder.result() is None:
            if container is not None and was_started(container["State"]):
                settle(folder, container)
            elif container is not None or folder.container_id() is None:
                raise ExecutorError(f"Attempt {name} is starting: stop it, then remove it.")
        if container is not None:
            self._engine.remove(container["Id"])
        self._observer.forget(name)
        if intent is not None:
            self._forget(folder)
            if intent.network:
                self._networks.clean(self._networks_in_use())

    def rings(self) -> Iterator[None]:
        """Yields when a container of this installation has ended. Raises ExecutorError."""
        return self._engine.ends(self._containers.label)

    def _folder(self, name: str) -> AttemptFolder:
        if not NAME.fullmatch(name):
            raise ExecutorError(f"{name!r} is no attempt name: letters, digits, '.', '_', '-', at most 128.")
        return AttemptFolder(self._control / name)

    def _bring_up(self, folder: AttemptFolder, intent: Intent, launch: Launch) -> None:
        """Under the attempt's lock: everything up to the running container, going on from wherever a crash left it."""
        if folder.result() is not None:
            return
        container = self._engine.inspect(container_name(launch.name))
        if container is not None:
            self._containers.refuse_stranger(container, launch)
            if was_started(container["State"]):
                folder.record_container(container["Id"])
                return
        elif folder.container_id() is not None:
            folder.record_end(intent, Verdict("lost", None, "The engine no longer has its container."))
            return
        if folder.stop_request() is not None:
            folder.record_end(intent, Verdict("stopped", None, "stopped before it started"))
            return
        try:
            image = self._image_of(launch)
        except ImageUnfit as unfit:
            folder.record_end(intent, Verdict("image_unavailable", None, str(unfit)))
            return
        if image is None:
            return
        payload = self._payload(folder, launch, image)
        try:
            container = self._containers.adopt_or_create(launch, payload, image, container)
        except ProfileMismatch as mismatch:
            message = f"The engine made another container than was asked for: {mismatch}"
            folder.record_end(intent, Verdict("lost", None, message))
            raise ExecutorError(message) from mismatch
        folder.record_container(container["Id"])
        self._containers.start(folder, intent, container)

    def _image_of(self, launch: Launch) -> dict[str, Any] | None:
        """The engine's facts of the image to run; None while it is being loaded. Raises ImageUnfit, ExecutorError."""
        if launch.spec.image is not None:
            return self._images.find(launch.spec.image.id, launch.spec.image.archive)
        serves_on_gpu = launch.spec.kind == "replica" and launch.wanted.has_gpu
        name = self._serve_image if serves_on_gpu else self._program_image
        if not name:
            raise ExecutorError("No image for the platform's programs is named: set DOCKER_PROGRAM_IMAGE.")
        facts = self._engine.image(self._image_ids[name]) if name in self._image_ids else None
        facts = facts or self._engine.image(name)
        if facts is None:
            raise ExecutorError(f"The engine {self._engine.url} has no image {name} for programs.")
        self._images.refuse_unfit(facts)
        self._image_ids[name] = facts["Id"]
        return facts

    def _payload(self, folder: AttemptFolder, launch: Launch, image: dict[str, Any]) -> dict[str, Any]:
        """Prepare the run folder and say what the container is. Raises LaunchRefused, ExecutorError, OSError."""
        user = user_of(launch)
        refuse_machine(launch, self._closed)
        check_readable(launch, user)
        log = prepare(str(launch.run_folder), user, launch.rank)
        os.fchown(log, user, user)
        os.close(log)
        wrapper = self._wrapper or str(ensure_wrapper(self._control / ".wrapper"))
        mounts = mounts_of(
            launch,
            wrapper=wrapper,
            orders=str(folder.orders),
            report=str(folder.report),
            programs=self._programs if launch.spec.program or launch.spec.image is None else (),
        )
        for mount in launch.spec.mounts:
            if mount.writable:
                lend(mount.source, user)
        network, alias = self._networks.ensure(launch)
        labels = {f"clavier.{key}": value for key, value in launch.labels.items()}
        labels |= {
            "clavier.install": self._install_id,
            "clavier.name": launch.name,
            "clavier.spec": launch.spec.digest(),
        }
        around = Surroundings(
            image_id=image["Id"],
            labels=labels,
            mounts=mounts,
            environment=self._environment,
            python=self._python if launch.spec.image is None else "python3",
            has_programs=self._image_has_programs,
            network=network,
            alias=alias,
            max_open_files=self._engine.max_open_files(),
            max_log_mib=self._max_log_mib,
        )
        return container_profile(launch, around)

    def _stop_unstarted(self, folder: AttemptFolder, intent: Intent) -> None:
        """Under the attempt's lock: what has not started never will."""
        container = self._containers.find(intent.attempt)
        is_unstarted = not was_started(container["State"]) if container else folder.container_id() is None
        if folder.result() is None and is_unstarted:
            folder.record_end(intent, Verdict("stopped", None, "stopped before it started"))

    def _networks_in_use(self) -> set[str]:
        folders = [AttemptFolder(Path(entry.path)) for entry in os.scandir(self._control) if entry.name[0] != "."]
        return {intent.network for folder in folders if (intent := folder.intent()) is not None}

    def _forget(self, folder: AttemptFolder) -> None:
        debris = self._control / f".gone-{secrets.token_hex(8)}"
        try:
            folder.path.rename(debris)
            remove_tree(debris)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ExecutorError(f"Attempt {folder.path.name} can not be removed: {error}") from error


def _check_for_containers(launch: Launch) -> None:
    """Raise LaunchRefused, or ExecutorError for the operator, for what only containers can not do."""
    if os.geteuid() != 0:
        raise ExecutorError("The platform must run as root to give programs in containers users of their own.")
    socket_path = os.path.join(os.path.abspath(launch.run_folder), names.WORK, "server.sock")
    if launch.spec.ready_file and len(os.fsencode(socket_path)) > _MAX_SOCKET_PATH_BYTES:
        raise ExecutorError(
            f"{socket_path} is too long for a socket ({_MAX_SOCKET_PATH_BYTES} bytes), and a container has no network "
            "on which its server could be reached. Move CLAVIER_HOME to a shorter path."
        )


def _intent_of(launch: Launch) -> Intent:
    limits = launch.spec.limits
    return Intent(
        attempt=launch.name,
        spec_digest=launch.spec.digest(),
        run_folder=os.path.abspath(launch.run_folder),
        rank=launch.rank,
        user_id=user_of(launch),
        memory_mib=launch.wanted.memory_mib,
        time_limit_s=limits.time_limit_s,
        stop_grace_s=limits.stop_grace_s,
        is_program=launch.spec.program is not None,
        network=launch.gang.network if launch.gang is not None else "",
        labels=launch.labels,
    )


def _result_of(launch: Launch) -> dict[str, Any] | None:
    """The result in a run folder if it is this attempt's; an earlier attempt may have left its own."""
    result = control.read_json(launch.run_folder / names.result_name(launch.rank))
    return result if result is not None and result.get("attempt") == launch.name else None


def _forget_debris(entry: os.DirEntry[str]) -> None:
    """What a crash between two steps left behind, once nobody can still be busy with it."""
    if entry.name.startswith((".new-", ".gone-")) and time.time() - entry.stat().st_mtime > _DEBRIS_AGE_S:
        with suppress(OSError):
            remove_tree(entry.path)
