"""`manage.py up` of a campaign: its processes, found by their home, and how they die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import requests

from tests.chaos.servers import free_port, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
#: Word in a command line -> what it is.
PARTS = {"rqworker": "worker", "reconcile": "reconciler", "wsgi": "web", "asgi": "front", "valkey": "valkey"}


class PlatformProcess:
    """One home; it is started again by the campaign when the whole of it was killed."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home, self.environment = home, environment
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; returns at once."""
        with open(self.home.parent / "up.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up", "--port", str(self.port), "--workers", "2"],
                cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def is_ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).ok
        except requests.RequestException:
            return False

    def revive(self) -> None:
        """As a service manager would: start it again if it has ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            self.start()

    def wait_until_ready(self, within_s: float = 120.0) -> None:
        """Until its front says so."""
        deadline = time.monotonic() + within_s
        while not self.is_ready():
            self.revive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the platform is not ready within {within_s:g} s")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to the supervisor; its children end with it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)
        # A worker that can not reach its queue goes on trying to say goodbye for a while; it takes no more work.
        wait_until(
            "the servers are gone", lambda: all(part_of(one.info["cmdline"]) == "worker" for one in self.parts())
        )

    def stop(self) -> None:
        """As Ctrl-C does; then whatever is left of this home is killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)
        for process in [*self.parts(), *self.wrappers()]:
            for one in (*tree(process), process):
                end(one)

    def parts(self) -> Iterator[psutil.Process]:
        """Each process of the platform itself, except the supervisor."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if self.process is not None and process.pid == self.process.pid:
                continue
            if part_of(words) and self._is_ours(process, words):
                yield process

    def named(self, part: str) -> list[psutil.Process]:
        """The processes of one part: worker, reconciler, web, front, valkey."""
        return [process for process in self.parts() if part_of(process.info["cmdline"]) == part]

    def wrappers(self) -> list[psutil.Process]:
        """What stands between the platform and its programs, first of each attempt first."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(word.endswith("wrapper.py") for word in words) and words[-1].startswith(f"{self.home}/"):
                found.append(process)
        return found

    def programs(self) -> list[psutil.Process]:
        """The jobs themselves."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(word.endswith("job.py") for word in words) and str(self.home.parent) in " ".join(words):
                found.append(process)
        return found

    def manage(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A management command in the platform's environment."""
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def _is_ours(self, process: psutil.Process, words: list[str]) -> bool:
        if str(self.home) in " ".join(words):
            return True
        try:
            return process.environ().get("CLAVIER_HOME") == str(self.home)
        except psutil.Error:
            return False


def part_of(words: list[str]) -> str:
    """Which part of the platform a command line is, or nothing."""
    text = " ".join(words)
    if "manage.py rqworker" in text or "manage.py reconcile" in text or "granian" in text or "valkey-server" in text:
        return next((part for word, part in PARTS.items() if word in text), "")
    return ""


def is_worker(process: psutil.Process) -> bool:
    """A queue worker."""
    return part_of(process.info["cmdline"]) == "worker"


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Everything below a process."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def end(process: psutil.Process) -> None:
    """SIGKILL, if it still is."""
    try:
        process.kill()
    except psutil.Error:
        return


def base_environment(home: Path) -> dict[str, str]:
    """The environment of a platform on a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "DJANGO"))}
    return kept | {
        "CLAVIER_HOME": str(home),
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "clavier.config.settings",
        "LOG_LEVEL": "INFO",
        "LOCAL_NODE_CPU_MILLI": "1000",
        "DISK_RESERVE_MIB": "1",
    }
