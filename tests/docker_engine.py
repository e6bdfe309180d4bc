"""A Docker Engine of the tests' own: a private dockerd, and images made without any registry.

``docker_daemon`` (a fixture to import in a conftest) starts one per worker of pytest. Where there is no dockerd or no
root the tests skip; in CI that is a failure.
"""

from __future__ import annotations

import io
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

START_LIMIT_S = 30.0
#: Libraries of the system that the virtual environment's packages (torch, tokenizers, llama.cpp) load.
EXTRA_LIBRARIES = (
    "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libz.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1",
    "libutil.so.1", "libm.so.6", "libc.so.6",
)  # fmt: skip
NOT_NEEDED = {"test", "idlelib", "tkinter", "turtledemo", "site-packages", "__pycache__", "ensurepip", "config-3.11"}
#: With this on its PATH the engine has a GPU driver: the real path of GPU requests, without a GPU.
GPU_HOOK = "#!/bin/sh\n# the engine looks only for the name; the environment is set before\ncat >/dev/null\n"
NOOP = "int main(int argc, char **argv) { return argc > 1 ? argc - 1 : 0; }\n"


def why_not() -> str:
    """Why there can be no engine here, or nothing."""
    if os.geteuid() != 0:
        return "a private dockerd needs root"
    missing = [name for name in ("dockerd", "ip", "gcc") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@dataclass
class DockerDaemon:
    """A dockerd of its own, with its containers, images and bridge, in a temporary folder with a short path."""

    folder: Path
    has_gpu_driver: bool = False
    keeps_containers: bool = True
    process: subprocess.Popen[bytes] | None = None
    bridge: str = ""
    _images: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"unix://{self.folder}/docker.sock"

    @property
    def client(self) -> APIClient:
        """A fresh client."""
        return APIClient(self.url, version="auto", timeout=60)

    def start(self) -> None:
        """Start and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.bridge:
            self.bridge = make_bridge()
        environment = dict(os.environ)
        if self.has_gpu_driver:
            environment["PATH"] = f"{self._gpu_hook()}:{environment['PATH']}"
        (self.folder / "pid").unlink(missing_ok=True)
        self._forget_dead_containerd()
        log = open(self.folder / "dockerd.log", "ab")  # noqa: SIM115  (the child keeps it)
        self.process = subprocess.Popen(
            ["dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec",
             "--pidfile", self.folder / "pid", "-H", self.url, f"--bridge={self.bridge}",
             *(["--live-restore"] if self.keeps_containers else []), "--default-address-pool",
             f"base={pool_of(self.bridge)},size=27"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert self.process.poll() is None, self.log()
            with suppress(Exception):
                if self.client.ping():
                    return
            assert time.monotonic() < deadline, f"dockerd does not answer: {self.log()}"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; containers live on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)

    def restart(self) -> None:
        """Kill and start again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End every container, then the daemon, and take the bridge and the files away."""
        if self.process is not None:
            with suppress(Exception):
                self.remove_containers()
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / "exec/containerd/containerd.pid").read_text()), signal.SIGKILL)
        if self.bridge:
            subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", line.split()[1]], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_containers(self) -> None:
        """Every container of this engine, running or not."""
        client = self.client
        for container in client.containers(all=True):
            client.remove_container(container["Id"], force=True, v=True)

    def log(self) -> str:
        """The end of the daemon's log."""
        return (self.folder / "dockerd.log").read_text(errors="replace")[-3000:]

    @cached_property
    def images(self) -> TestImages:
        """Images to run in, made at first use."""
        return TestImages(self)

    def _forget_dead_containerd(self) -> None:
        """It dies with its daemon; where nobody reaps it, the next daemon would take the zombie for alive."""
        pid_file = self.folder / "exec/containerd/containerd.pid"
        if pid_file.exists():
            deadline = time.monotonic() + 5
            while is_running(int(pid_file.read_text())) and time.monotonic() < deadline:
                time.sleep(0.05)
            if not is_running(int(pid_file.read_text())):
                pid_file.unlink()

    def _gpu_hook(self) -> Path:
        folder = self.folder / "hook"
        folder.mkdir(exist_ok=True)
        hook = folder / "nvidia-container-runtime-hook"
        hook.write_text(GPU_HOOK)
        hook.chmod(0o755)
        return folder


class TestImages:
    """Image ids on one daemon; each is imported from a tar when it is first asked for."""

    __test__ = False

    def __init__(self, daemon: DockerDaemon) -> None:
        self._daemon = daemon

    @cached_property
    def python(self) -> str:
        """The running interpreter with the libraries it loads; packages come from a mounted virtual environment."""
        return self.import_tar(interpreter_tar(), "python")

    @cached_property
    def noop(self) -> str:
        """One static binary, ``/noop``, which exits with the number of its arguments."""
        return self.import_tar(tar_of({"noop": compiled(NOOP)}), "noop")

    @cached_property
    def with_volume(self) -> str:
        """``noop`` with a VOLUME."""
        return self.import_tar(tar_of({"noop": compiled(NOOP)}), "volume", ["VOLUME /data"])

    def import_tar(self, tar: bytes, tag: str, changes: list[str] | None = None) -> str:
        """The id of a new image with this tree."""
        client = self._daemon.client
        client.import_image_from_data(tar, repository="test", tag=tag, changes=changes)
        return str(client.inspect_image(f"test:{tag}")["Id"])

    def save(self, image: str, path: Path) -> Path:
        """An archive as ``docker save`` writes it."""
        with open(path, "wb") as stream:
            for piece in self._daemon.client.get_image(image):
                stream.write(piece)
        return path


@pytest.fixture(scope="session")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerDaemon]:
    """A private engine for the session."""
    if reason := why_not():
        if os.environ.get("CI"):
            pytest.fail(f"CI must test with a Docker Engine: {reason}")
        pytest.skip(reason)
    daemon = new_daemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


def new_daemon(*, has_gpu_driver: bool = False, keeps_containers: bool = True) -> DockerDaemon:
    """A daemon that is not started yet. ``keeps_containers``: they live on while it is down."""
    return DockerDaemon(Path(tempfile.mkdtemp(prefix="clavier-docker-")), has_gpu_driver, keeps_containers)


def program_binds() -> tuple[str, ...]:
    """What the interpreter of the image lacks: the virtual environment."""
    return (sys.prefix,)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def make_bridge() -> str:
    """A bridge with a /24 of its own, as the engine's default network."""
    for _ in range(50):
        number = secrets.randbelow(250) + 1
        taken = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
        name = f"clvt{number}"
        if f" 10.233.{number}." in taken or name in taken:
            continue
        made = subprocess.run(["ip", "link", "add", "name", name, "type", "bridge"], check=False, capture_output=True)
        if made.returncode == 0:
            subprocess.run(["ip", "addr", "add", f"10.233.{number}.1/24", "dev", name], check=True)
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            return name
    raise AssertionError("no free bridge")


def pool_of(bridge: str) -> str:
    """Addresses for the networks that containers of this daemon make."""
    number = int(re.sub(r"\D", "", bridge))
    return str(ipaddress.ip_network(f"10.{234 + number % 20}.{number}.0/24"))


def compiled(source: str) -> bytes:
    """A static program."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program")
        Path(folder, "program.c").write_text(source)
        subprocess.run(["gcc", "-static", "-O2", "-s", "-o", path, Path(folder, "program.c")], check=True)
        return path.read_bytes()


def tar_of(files: dict[str, bytes], mode: int = 0o755) -> bytes:
    """A tar with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def interpreter_tar() -> bytes:
    """The base interpreter, its standard library, and every shared library that these load."""
    executable = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    modules = list((library / "lib-dynload").glob("*.so"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in executable.parent.glob("python*"):
            if path.resolve() == executable:
                tar.add(path, str(path)[1:])
        tar.add(library, str(library)[1:], filter=_leave_out)
        for path in sorted(shared_libraries([executable, *modules])):
            tar.add(os.path.realpath(path), path[1:], recursive=False)
        for name, text in (("etc/passwd", "root:x:0:0::/:/bin/false\n"), ("etc/group", "root:x:0:\n")):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
        for name in ("tmp", "clavier"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
    return buffer.getvalue()


def shared_libraries(programs: list[Path]) -> set[str]:
    """Paths that the loader would open for these programs, and some for packages."""
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    found = set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", told, re.M))
    cached = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name in EXTRA_LIBRARIES:
        if match := re.search(rf"^\s{re.escape(name)} .*x86-64.* => (\S+)$", cached, re.M):
            found.add(match[1])
    return found


def engine_state(daemon: DockerDaemon, label: str) -> list[dict[str, Any]]:
    """Containers with a label, as the engine lists them."""
    found: list[dict[str, Any]] = json.loads(json.dumps(daemon.client.containers(all=True, filters={"label": label})))
    return found


def _leave_out(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if NOT_NEEDED & set(member.name.split("/")) or member.name.endswith(".a") else member
