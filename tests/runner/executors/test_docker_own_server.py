"""A server of a user's own in a container without a network: reached by a Unix socket, ready once it answers."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runner.contract.run_spec import Image, Limits
from runner.executors.base import Launch
from tests.runner.executors.bench import DockerBench, make_launch, wait_for, wait_until_exited

pytestmark = pytest.mark.docker

SERVER = """
import http.server, time
class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
time.sleep(1)
http.server.ThreadingHTTPServer(("127.0.0.1", 5050), Echo).serve_forever()
"""
OWN_SOCKET = """
import os, socket
server = socket.socket(socket.AF_UNIX); server.bind(os.environ["PLACE"]); server.listen()
while True:
    client, _ = server.accept(); client.close()
"""


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("own")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def launch_of(docker: DockerBench, tmp_path: Path, source: str, **changes: object) -> Launch:
    """A launch of Python in an image of the user's own."""
    launch = make_launch(tmp_path, "own", source, limits=Limits(time_limit_s=None, stop_grace_s=1))
    spec = replace(
        launch.spec, program=None, argv=(os.path.realpath(sys.executable), "-c", source), image=Image(docker.image),
        ready_file=True, **changes,
    )  # fmt: skip
    return replace(launch, spec=spec)


def test_requests_reach_the_port_of_an_own_server_by_the_socket(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    launch = launch_of(docker, tmp_path, SERVER, serve_port=5050)
    executor.start(launch)
    ready, place = launch.run_folder / "work/ready.json", launch.run_folder / "work/server.sock"
    wait_for(lambda: ready.exists() and ready.read_text(), "the server answers")
    assert json.loads(ready.read_text()) == {"engine": "own"}
    for size in (1, 3_000_000):
        connection = Connection(place)
        connection.request("POST", "/v1/chat/completions", body=b"x" * size)
        assert len(connection.getresponse().read()) == size
        connection.close()
    executor.stop("own", 1)
    assert wait_until_exited(executor, "own").cause == "stopped"


def test_a_server_that_makes_the_socket_itself_is_ready_once_it_answers(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    launch = launch_of(docker, tmp_path, OWN_SOCKET)
    place = str(launch.run_folder / "work/server.sock")
    launch = replace(launch, spec=replace(launch.spec, environment={"PLACE": place}))
    executor.start(launch)
    wait_for(lambda: (launch.run_folder / "work/ready.json").exists(), "the server answers")
    executor.stop("own", 0)
    wait_until_exited(executor, "own")


def test_a_server_that_can_not_start_ends_with_its_own_code(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    launch = launch_of(docker, tmp_path, "raise SystemExit(7)", serve_port=5050)
    executor.start(launch)
    ended = wait_until_exited(executor, "own")
    assert (ended.exit_code, ended.cause) == (7, "exit")
    assert not (launch.run_folder / "work/ready.json").exists()
