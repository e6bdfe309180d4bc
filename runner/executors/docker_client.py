"""The calls of the Docker Engine that the executor makes; each answers or says in words why not."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from runner.executors.base import ExecutorError

_DEFAULT_SOCKET = "unix:///var/run/docker.sock"
_MAX_OPEN_FILES = 65536
_NOT_FOUND, _CONFLICT = 404, 409
#: One engine that hangs must not keep the reconciler from the others for long.
_LIST_TIMEOUT_S = 10.0
#: What is done to one container besides making and starting it: an engine that works does so in moments.
_SHORT_TIMEOUT_S = 20.0
#: Loading an image may take as long as its disk needs.
_LOAD_TIMEOUT_S = 3600.0


class EngineRefused(ExecutorError):
    """The engine answered, and the answer is no. ``status``: 404 there is none, 409 taken or in use, 5xx its fault."""

    def __init__(self, message: str, status: int, explanation: str) -> None:
        super().__init__(message)
        self.status = status
        self.explanation = explanation


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself. ``architecture``: in the words of images (amd64, arm64).

    ``unfit``: why containers of ours can not run there, or nothing.
    """

    architecture: str
    runtime: str
    unfit: str


class Engine:
    """One Docker Engine. ``url`` empty: DOCKER_HOST and its TLS variables, else the socket of this machine."""

    def __init__(self, url: str = "", timeout_s: float = 60.0) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._clients: dict[tuple[int, float], Any] = {}

    @property
    def url(self) -> str:
        """Where the engine is."""
        return self._url or os.environ.get("DOCKER_HOST") or _DEFAULT_SOCKET

    @cached_property
    def facts(self) -> EngineFacts:
        """Asked once. Raises ExecutorError."""
        with self._words("info"):
            info = self._client().info()
        options = {option.strip() for option in info.get("SecurityOptions") or ()}
        unfit = ""
        if not options & {"name=seccomp,profile=default", "name=seccomp,profile=builtin"}:
            unfit = f"The engine {self.url} runs without its default seccomp profile."
        if options & {"name=rootless", "name=userns"}:
            unfit = f"The engine {self.url} gives containers other user numbers (rootless, userns-remap)."
        names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
        architecture = names.get(info["Architecture"], info["Architecture"])
        return EngineFacts(architecture, info["DefaultRuntime"], unfit)

    def containers(self, label: str) -> list[dict[str, Any]]:
        """Every container with a label (``key=value``), also those that have ended. Raises ExecutorError."""
        with self._words("the list of containers"):
            client = self._client(_LIST_TIMEOUT_S)
            found: list[dict[str, Any]] = client.containers(all=True, filters={"label": [label]})
        return found

    def ends(self, label: str) -> Iterator[None]:
        """Yields at each end of a container with a label; is over when the engine goes. Raises ExecutorError."""
        with self._words("the events"):
            wanted = {"type": ["container"], "event": ["die"], "label": [label]}
            # A client of its own, since the thread that listens is none of those that ask.
            for _ in self._new_client(self._timeout_s).events(filters=wanted):
                yield

    def inspect(self, container: str) -> dict[str, Any] | None:
        """All of one container by name or id; None when there is none. Raises ExecutorError."""
        try:
            with self._words(f"container {container}"):
                facts: dict[str, Any] = self._client(_SHORT_TIMEOUT_S).inspect_container(container)
        except EngineRefused as refusal:
            if refusal.status == _NOT_FOUND:
                return None
            raise
        return facts

    def create(self, name: str, payload: dict[str, Any]) -> str | None:
        """The id of a new container; None when its name is taken. Raises ExecutorError."""
        try:
            with self._words(f"creating container {name}"):
                return str(self._client().create_container_from_config(payload, name)["Id"])
        except EngineRefused as refusal:
            if refusal.status == _CONFLICT:
                return None
            raise

    def start(self, container: str) -> None:
        """Start a created container; a running one stays as it is. Raises ExecutorError."""
        with self._words(f"starting container {container}"):
            self._client().start(container)

    def signal(self, container: str, name: str) -> bool:
        """Send a signal to the first process; False when nothing runs there. Raises ExecutorError."""
        try:
            with self._words(f"signalling container {container}"):
                self._client(_SHORT_TIMEOUT_S).kill(container, name)
        except EngineRefused as refusal:
            if refusal.status in (_NOT_FOUND, _CONFLICT) or "is not running" in refusal.explanation:
                return False
            raise
        return True

    def remove(self, container: str) -> None:
        """Remove an ended container; no container is no error. Raises ExecutorError, also while it runs."""
        try:
            with self._words(f"removing container {container}"):
                self._client(_SHORT_TIMEOUT_S).remove_container(container, v=True, force=False)
        except EngineRefused as refusal:
            if refusal.status == _NOT_FOUND or "already in progress" in refusal.explanation:
                return
            raise

    def image(self, reference: str) -> dict[str, Any] | None:
        """All of one image by id or tag; None when the engine has none. Raises ExecutorError."""
        try:
            with self._words(f"image {reference}"):
                facts: dict[str, Any] = self._client().inspect_image(reference)
        except EngineRefused as refusal:
            if refusal.status == _NOT_FOUND:
                return None
            raise
        return facts

    def images(self, pattern: str) -> list[dict[str, Any]]:
        """The images with a tag of this pattern. Raises ExecutorError."""
        with self._words("the list of images"):
            found: list[dict[str, Any]] = self._client().images(filters={"reference": [pattern]})
        return found

    def tag(self, image: str, repository: str, tag: str) -> None:
        """Give an image one more name. Raises ExecutorError."""
        with self._words(f"tagging image {image}"):
            self._client().tag(image, repository, tag, force=True)

    def remove_image(self, reference: str) -> None:
        """Take a name away, and the image with its last name; no image is no error. Raises ExecutorError."""
        try:
            with self._words(f"removing image {reference}"):
                self._client().remove_image(reference)
        except EngineRefused as refusal:
            if refusal.status != _NOT_FOUND:
                raise

    def load(self, tar: Iterable[bytes]) -> None:
        """Take in the images of a tar as ``docker save`` writes it. Raises ExecutorError."""
        with self._words("loading an image"):
            for told in self._client(_LOAD_TIMEOUT_S, is_patient=True).load_image(tar):
                if "error" in told:
                    raise ExecutorError(f"The engine {self.url} can not load the image: {told['error']}")

    def network(self, name: str) -> dict[str, Any] | None:
        """All of one network; None when there is none. Raises ExecutorError."""
        try:
            with self._words(f"network {name}"):
                facts: dict[str, Any] = self._client().inspect_network(name)
        except EngineRefused as refusal:
            if refusal.status == _NOT_FOUND:
                return None
            raise
        return facts

    def networks(self, label: str) -> list[dict[str, Any]]:
        """Networks with a label. Raises ExecutorError."""
        with self._words("the list of networks"):
            found: list[dict[str, Any]] = self._client().networks(filters={"label": [label]})
        return found

    def create_network(self, name: str, labels: dict[str, str], *, internal: bool, options: dict[str, str]) -> None:
        """Make a bridge network; one of that name is no error. Raises ExecutorError."""
        try:
            with self._words(f"creating network {name}"):
                self._client().create_network(
                    name, driver="bridge", options=options, labels=labels, internal=internal, check_duplicate=True
                )
        except EngineRefused as refusal:
            if refusal.status != _CONFLICT:
                raise

    def remove_network(self, name: str) -> bool:
        """False while containers are in it. Raises ExecutorError."""
        try:
            with self._words(f"removing network {name}"):
                self._client().remove_network(name)
        except EngineRefused as refusal:
            if refusal.status == _NOT_FOUND:
                return True
            if "active endpoints" in refusal.explanation:
                return False
            raise
        return True

    def max_open_files(self) -> int:
        """Not more than the engine may have itself: else no container starts. A remote engine is taken to be alike."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        scheme, _, path = self.url.partition("://")
        if scheme == "unix":
            with suppress(OSError, ValueError, StopIteration), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(path)
                pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
                hard = next(line for line in lines if line.startswith("Max open files")).split()[4]
                most = resource.RLIM_INFINITY if hard == "unlimited" else int(hard)
        return _MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _MAX_OPEN_FILES)

    def _client(self, timeout_s: float = float("inf"), *, is_patient: bool = False) -> Any:
        """One client a process: a connection that a fork shares would mix up answers. Raises DockerException.

        Its patience is the engine's, or less; more only where ``is_patient``.
        Any, because only half of the SDK's methods have types.
        """
        timeout_s = timeout_s if is_patient else min(timeout_s, self._timeout_s)
        client = self._clients.get((os.getpid(), timeout_s))
        if client is None:
            client = self._clients[os.getpid(), timeout_s] = self._new_client(timeout_s)
        return client

    def _new_client(self, timeout_s: float) -> Any:
        """Raises DockerException."""
        options = kwargs_from_env()
        if self._url:
            options["base_url"] = self._url
        return APIClient(**options, version="auto", timeout=int(timeout_s))

    @contextmanager
    def _words(self, what: str) -> Iterator[None]:
        """Every trouble with the engine becomes an ExecutorError that says where and what."""
        try:
            yield
        except APIError as error:
            explanation = str(error.explanation or error).strip()
            status = error.response.status_code if error.response is not None else 500
            raise EngineRefused(f"Docker Engine {self.url}, {what}: {explanation}", status, explanation) from error
        except (DockerException, requests.RequestException, OSError, ValueError) as error:
            raise ExecutorError(f"The Docker Engine {self.url} does not answer ({what}): {error}") from error
