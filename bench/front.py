"""What the front costs: the same WSGI application behind it and without it, under granian both times, interleaved.

`make bench NAME=front` prints one JSON line per measure: median and spread over the rounds, ABBA.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 6
REQUESTS = 4000
UPLOAD_MIB = 1024
MIB = 2**20


def web(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application: reads the whole body, answers with its size and digest."""
    digest, size = hashlib.blake2b(), 0
    while chunk := environ["wsgi.input"].read(MIB):
        digest.update(chunk)
        size += len(chunk)
    body = json.dumps({"size": size, "digest": digest.hexdigest()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class Server:
    """One granian process on a port of its own or on a Unix socket."""

    def __init__(self, interface: str, target: str, socket_path: Path | None, environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        where = ["--uds", str(socket_path)] if socket_path else ["--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "granian", "--interface", interface, "--http", "1", "--no-ws", *where, target],
            env={**os.environ, **environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        family, address = (
            (socket.AF_UNIX, str(socket_path)) if socket_path else (socket.AF_INET, ("127.0.0.1", self.port))
        )
        wait_for_server(family, address)

    def everyone(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(float(sum(one.cpu_times()[:2])) for one in self.everyone())

    def memory_mib(self) -> float:
        return sum(float(one.memory_info().rss) for one in self.everyone()) / MIB


def wait_for_server(family: int, address: Any, within_s: float = 20.0) -> None:
    """Return when something listens there. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with socket.socket(family) as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {address} after {within_s} s")


@contextmanager
def running(*arguments: Any) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(10)


def request_latency_us(server: Server) -> dict[str, float]:
    """Small requests one after the other on one connection: median and p99 in microseconds, CPU of this server each."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    cpu_before, times = server.cpu_s(), []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        connection.request("GET", "/")
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
    cpu_us = (server.cpu_s() - cpu_before) / REQUESTS * 1e6
    times.sort()
    return {"p50_us": times[len(times) // 2] * 1e6, "p99_us": times[int(len(times) * 0.99)] * 1e6, "cpu_us": cpu_us}


def upload(server: Server) -> dict[str, float]:
    """One large body: MiB/s, CPU seconds of this server a GiB, and the growth of its memory in MiB."""
    chunk, before, cpu_before = os.urandom(MIB), server.memory_mib(), server.cpu_s()
    expected = hashlib.blake2b()
    for _ in range(UPLOAD_MIB):
        expected.update(chunk)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    began = time.perf_counter()
    connection.request(
        "POST", "/", body=(chunk for _ in range(UPLOAD_MIB)), headers={"Content-Length": str(UPLOAD_MIB * MIB)}
    )
    answer = json.loads(connection.getresponse().read())
    wall_s = time.perf_counter() - began
    if answer != {"size": UPLOAD_MIB * MIB, "digest": expected.hexdigest()}:
        raise ValueError(f"the body did not arrive whole: {answer}")
    cpu_s_per_gib = (server.cpu_s() - cpu_before) / UPLOAD_MIB * 1024
    return {
        "mib_per_s": UPLOAD_MIB / wall_s,
        "cpu_s_per_gib": cpu_s_per_gib,
        "growth_mib": server.memory_mib() - before,
    }


def report(name: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    """One JSON line per side: median, lowest and highest of every figure."""
    for side, results in rounds.items():
        figures = {
            key: [round(f([one[key] for one in results]), 1) for f in (statistics.median, min, max)]
            for key in results[0]
        }
        print(json.dumps({"bench": "front", "measure": name, "side": side, "median_min_max": figures}))


def main() -> None:
    """Measure both sides in turn."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        web_socket = Path(folder) / "web.sock"
        stack.enter_context(running("wsgi", "bench.front:web", web_socket, {}))
        sides = {
            "direct": stack.enter_context(running("wsgi", "bench.front:web", None, {})),
            "front": stack.enter_context(
                running("asgi", "tests.platform.front_stand_in:front", None, {"STAND_IN_WEB_SOCKET": str(web_socket)})
            ),
        }
        for name, measure, count in (("request", request_latency_us, ROUNDS), ("upload", upload, ROUNDS // 2)):
            rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for number in range(count):
                for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
                    rounds[side].append(measure(sides[side]))
            report(name, rounds)


if __name__ == "__main__":
    main()
