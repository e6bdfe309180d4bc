"""The servers that a campaign kills and starts again: Redis and PostgreSQL, each private to it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psycopg
import redis
from docker.errors import APIError

from tests.chaos.engine_proxy import EngineProxy
from tests.docker_engine import new_daemon
from tests.test_postgresql import INITDB

PATIENCE_S = 60.0
START_TRIES = 5


class Server(Protocol):
    """Something outside of the platform that may die at any moment."""

    name: str

    def start(self) -> None:
        """Start and wait until it answers."""

    def answers(self) -> bool:
        """It works."""

    def kill(self) -> None:
        """As hard as it gets."""

    def stop(self) -> None:
        """For good."""


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, holds: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Poll. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(0.05)


class Redis:
    """A redis-server with an append-only file, as production has it."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def start(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        assert program, "redis-server is not installed"
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        options += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([program, *options], stdout=log, stderr=log)
        wait_until("redis answers", self.answers)

    def answers(self) -> bool:
        try:
            return bool(redis.Redis(port=self.port, socket_timeout=1).ping())
        except redis.RedisError:
            return False

    def flush(self) -> None:
        """Forget everything."""
        redis.Redis(port=self.port, socket_timeout=5).flushall()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)

    stop = kill


class PostgreSQL:
    """A cluster of its own, with fsync on: what was committed must be there after a kill."""

    name = "postgresql"

    def __init__(self, folder: Path) -> None:
        assert INITDB, "PostgreSQL is not installed"
        self.folder, self.port = folder, free_port()
        self.url = f"postgres://clavier@127.0.0.1:{self.port}/postgres"
        self.data = folder / "data"
        self.bin = Path(INITDB).parent
        folder.mkdir()
        self.as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self._run([INITDB, "-D", str(self.data), "-U", "clavier", "-A", "trust"])

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=60"
        deadline = time.monotonic() + PATIENCE_S
        # After a kill -9 of the postmaster its children may still hold the shared memory for moments.
        while self._control("-o", options, "-l", str(self.folder / "log"), "-w", "start").returncode:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.3)
        wait_until("postgresql answers", self.answers)

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url.replace("postgres://", "postgresql://"), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children notice by themselves."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        wait_until("the postmaster is gone", lambda: not Path(f"/proc/{pid}").exists())

    def stop(self) -> None:
        """An immediate shutdown, which is a crash as well."""
        self._control("-m", "immediate", "-w", "stop")

    def _control(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return self._run([str(self.bin / "pg_ctl"), "-D", str(self.data), *words], check=False)

    def _run(self, words: list[str], *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.as_user, *words], cwd=self.folder, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


class Dockerd:
    """A private Docker Engine; its containers outlive it (live-restore)."""

    name = "dockerd"

    def __init__(self) -> None:
        self.daemon = new_daemon(has_gpu_driver=True)
        self.start()
        self.image = self.daemon.images.python
        self.proxy = EngineProxy(self.daemon.folder / "proxy.sock", self.daemon.folder / "docker.sock")

    def start(self) -> None:
        for _ in range(START_TRIES):
            try:
                self.daemon.start()
                return
            except AssertionError:
                # A killed dockerd may leave a containerd that does not answer; as a service manager would: again.
                with suppress(OSError, ValueError):
                    os.kill(int((self.daemon.folder / "exec/containerd/containerd.pid").read_text()), signal.SIGKILL)
        raise TimeoutError(f"dockerd does not come back: {self.daemon.log()}")

    def answers(self) -> bool:
        try:
            return bool(self.daemon.client.ping())
        except Exception:  # the client raises whatever its HTTP library does
            return False

    def containers(self, *, only_running: bool = True) -> list[str]:
        """Names of the containers of attempts."""
        try:
            found = self.daemon.client.containers(all=not only_running)
        except Exception:  # the engine is down at this moment
            return []
        return sorted(container["Names"][0].lstrip("/") for container in found if container["Names"])

    def kill_container(self, name: str) -> None:
        """SIGKILL to its first process; it may have ended by itself meanwhile."""
        with suppress(APIError):
            self.daemon.client.kill(name, "SIGKILL")

    def kill(self) -> None:
        self.daemon.kill()

    def stop(self) -> None:
        self.proxy.close()
        self.daemon.stop()
