"""A whole platform, started as a person starts it, on a home of its own: one per worker of pytest."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from clavier.demo.client import Client

REPOSITORY = Path(__file__).resolve().parents[2]
PASSWORD = "demo-password-of-the-tests"


def wait_for(what: str, check: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """Poll until a check gives something true."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {limit_s:g} s")


@dataclass
class Platform:
    """`manage.py up` with its processes."""

    home: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    started: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until everything is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.started += 1
        log = open(self.home / f"up-{self.started}.log", "wb")  # noqa: SIM115  (the child keeps it)
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", str(self.port)],
            cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        wait_for("the platform is ready", self.is_ready, 90)

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return requests.get(f"{self.origin}/readyz", timeout=5).ok
        except requests.RequestException:
            return False

    def stop(self) -> float:
        """TERM; the seconds it took. The exit code must be 0."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, self.log()
        return time.monotonic() - began

    def log(self) -> str:
        return (self.home / f"up-{self.started}.log").read_text(errors="replace")[-4000:]

    def manage(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A management command in the platform's environment."""
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def create_user(self, name: str) -> dict[str, str]:
        """A user with a tenant of its own."""
        made = self.manage("create_user", name, "--tenant", name, "--password", PASSWORD, "--json")
        assert made.returncode == 0, made.stderr
        facts: dict[str, str] = json.loads(made.stdout)
        return facts

    def client_of(self, api_key: str) -> Client:
        return Client(self.origin, api_key)

    def processes(self, word: str) -> list[psutil.Process]:
        """Processes of this home whose command line has a word."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                words = process.info["cmdline"] or []
                if any(word in part for part in words) and str(self.home) in process.environ().get(
                    "CLAVIER_HOME", ""
                ) + " ".join(words):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Runs for the whole session; at the end it stops, and so does what it started."""
    home = Path("/tmp") / f"clavier-live-{secrets.token_hex(4)}"
    home.mkdir(mode=0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "DJANGO"))}
    made = Platform(home, environment={**environment, "CLAVIER_HOME": str(home), "LOGIN_FAILURE_LIMIT": "50"})
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.terminate()
            made.process.wait(timeout=30)
        for process in made.processes("wrapper.py"):
            process.kill()
        subprocess.run(["rm", "-rf", str(home)], check=False)


@pytest.fixture(scope="session")
def demo(platform: Platform) -> dict[str, Any]:
    """What `manage.py demo --json` found on the live platform; its service stays up."""
    key = platform.create_user("demo")["api_key"]
    told = platform.manage("demo", "--json", "--url", platform.origin, "--api-key", key, timeout_s=400)
    assert told.returncode == 0, told.stderr[-3000:] + told.stdout[-3000:]
    facts: dict[str, Any] = json.loads(told.stdout)
    return facts | {"api_key": key}
