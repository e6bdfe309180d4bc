"""The front under its real server (granian), before a web process on a real Unix socket."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


class Web:
    """A stand-in for the web process: what arrived, and answers of every kind. Runs in a thread."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.events: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        if self._runner:
            self._call(self._runner.cleanup())
            self._runner = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**40)
        app.router.add_route("*", "/echo{rest:.*}", self._echo)
        app.router.add_post("/upload", self._upload)
        app.router.add_post("/refuse", self._refuse)
        app.router.add_get("/file", self._file)
        app.router.add_get("/unchanged", self._unchanged)
        app.router.add_get("/endless", self._endless)
        app.router.add_get("/half", self._half)
        app.router.add_get("/drop", self._drop)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket_path)).start()

    async def _echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Keep-Alive", "timeout=5"), ("X-Kept", "yes")]
        return web.json_response(
            {
                "method": request.method,
                "raw_path": request.raw_path,
                "headers": [[name.lower(), value] for name, value in request.headers.items()],
                "body": body.decode("latin-1"),
            },
            headers=headers,
        )

    async def _upload(self, request: web.Request) -> web.Response:
        digest, size = hashlib.sha256(), 0
        self.events.append("upload began")
        try:
            async for chunk in request.content.iter_any():
                digest.update(chunk)
                size += len(chunk)
        except BaseException:
            self.events.append("upload cut off")
            raise
        self.events.append("upload complete")
        return web.json_response({"size": size, "sha256": digest.hexdigest()})

    async def _refuse(self, request: web.Request) -> web.Response:
        return web.json_response({"refused": True}, status=413)

    async def _file(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(request.query["path"])

    async def _unchanged(self, request: web.Request) -> web.Response:
        return web.Response(status=304, headers={"ETag": '"v1"'})

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: tick\n\n")
                self.events.append("tick")
                await asyncio.sleep(0.02)
        except (asyncio.CancelledError, ConnectionError):
            self.events.append("stream cancelled")
            raise

    async def _half(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"half of it")
        assert request.transport
        request.transport.abort()
        return response

    async def _drop(self, request: web.Request) -> web.Response:
        assert request.transport
        request.transport.abort()
        return web.Response()


class FrontProcess:
    """The front in a process of its own, under granian with the options of `manage.py up`."""

    def __init__(self, web_socket: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "granian", "--interface", "asgi", "--http", "1", "--no-ws"),
                *("--port", str(self.port), "--workers-kill-timeout", "1", "tests.platform.front_stand_in:front"),
            ],
            env={**os.environ, "STAND_IN_WEB_SOCKET": str(web_socket), "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"},
            cwd=ROOT,
        )
        wait_until(lambda: self._accepts(), "the front accepts connections", 60)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def memory_mib(self) -> float:
        everyone = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(float(one.memory_info().rss) for one in everyone) / MIB

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        connection.request(method, path, body=body, headers=headers or {})
        answer = Answer(connection.getresponse())
        connection.close()
        return answer


class Answer:
    """A whole answer, read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def web_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    one = Web(tmp_path_factory.mktemp("web") / "web.sock")
    one.start()
    yield one
    one.close()


@pytest.fixture(scope="module")
def running_front(web_process: Web) -> Iterator[FrontProcess]:
    one = FrontProcess(web_process.socket_path)
    yield one
    one.process.terminate()
    one.process.wait(10)


@pytest.fixture
def front(running_front: FrontProcess, web_process: Web) -> FrontProcess:
    web_process.events.clear()
    return running_front


def raw_exchange(front: FrontProcess, request: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


def sent_to_web(front: FrontProcess, headers: str) -> list[list[str]]:
    request = f"GET /echo HTTP/1.1\r\nHost: portal.example:8000\r\nConnection: close\r\n{headers}\r\n"
    _, _, body = raw_exchange(front, request.encode()).partition(b"\r\n\r\n")
    sent: list[list[str]] = json.loads(body)["headers"]
    return sent


def test_openai_paths_go_to_the_gateway_and_others_to_the_web(front: FrontProcess) -> None:
    assert front.ask("GET", "/openai/v1/models").body == b"gateway /openai/v1/models"
    assert front.ask("GET", "/echo/openai/v1/models").json()["raw_path"] == "/echo/openai/v1/models"


def test_method_path_query_and_body_arrive_unchanged(front: FrontProcess) -> None:
    path = "/echo/a%2Fb%20c//d/%E6%A8%A1?q=%2B+1&q=&x=a%26b"
    answer = front.ask("PATCH", path, body=b"\x00body\xff").json()
    assert (answer["method"], answer["raw_path"], answer["body"]) == ("PATCH", path, "\x00body\xff")


def test_host_is_kept_and_only_the_peer_is_told(front: FrontProcess) -> None:
    sent = dict(sent_to_web(front, ""))
    assert sent["host"] == "portal.example:8000"
    assert (sent["x-forwarded-for"], sent["x-forwarded-proto"]) == ("127.0.0.1", "http")


def test_a_client_can_not_say_what_only_the_front_may_say(front: FrontProcess) -> None:
    forged = (
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Real-IP: 6.6.6.6\r\n"
        "Forwarded: for=6.6.6.6\r\nX-Clavier-User: root\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded_Proto: https\r\n"
        "X-Real-Iphone: kept\r\nX-Forward: kept\r\n"
    )
    sent = sent_to_web(front, forged)
    assert {name: value for name, value in sent if name.startswith("x") or "forw" in name} == {
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-real-iphone": "kept",
        "x-forward": "kept",
    }


def test_hop_by_hop_headers_end_at_the_front_both_ways(front: FrontProcess) -> None:
    sent = sent_to_web(
        front, "Connection: X-Secret-Hop\r\nX-Secret-Hop: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Kept: 1\r\n"
    )
    names = {name for name, _ in sent}
    assert names.isdisjoint({"connection", "x-secret-hop", "te", "upgrade", "keep-alive"})
    assert "x-kept" in names
    answer = front.ask("GET", "/echo")
    assert answer.headers["Keep-Alive"] is None
    assert answer.headers["X-Kept"] == "yes"


def test_two_cookies_stay_two(front: FrontProcess) -> None:
    assert front.ask("GET", "/echo").headers.get_all("Set-Cookie") == ["a=1", "b=2"]


def test_nothing_is_added_that_the_client_did_not_say(front: FrontProcess) -> None:
    names = {name for name, _ in sent_to_web(front, "")}
    assert names == {"host", "x-forwarded-for", "x-forwarded-proto"}


def test_head_and_304_have_their_headers_and_no_body(front: FrontProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    head = front.ask("HEAD", f"/file?path={tmp_path}/file")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "1000", b"")
    unchanged = front.ask("GET", "/unchanged")
    assert (unchanged.status, unchanged.headers["ETag"], unchanged.body) == (304, '"v1"', b"")


def test_a_range_of_a_file_is_a_206_with_these_bytes(front: FrontProcess, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    part = front.ask("GET", f"/file?path={tmp_path}/file", headers={"Range": "bytes=100000-299998"})
    assert (part.status, part.headers["Content-Range"]) == (206, "bytes 100000-299998/300000")
    assert part.body == content[100_000:299_999]


def test_a_chunked_body_arrives_with_a_length(front: FrontProcess) -> None:
    answer = front.ask("POST", "/echo", body=iter([b"one ", b"two"])).json()
    assert answer["body"] == "one two"
    assert ["content-length", "7"] in answer["headers"]
    assert "transfer-encoding" not in dict(answer["headers"])


def test_a_large_chunked_body_is_refused_with_what_to_do(front: FrontProcess) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = raw_exchange(front, request + 8 * (b"100000\r\n" + bytes(MIB) + b"\r\n") + b"1\r\nx\r\n")
    assert received.startswith(b"HTTP/1.1 411")
    assert b"needs a Content-Length header" in received


def test_expect_100_continue_is_answered_before_the_body(front: FrontProcess) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b"body")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_answer_before_the_end_of_the_body_reaches_the_client(front: FrontProcess) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\nbegin")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_websocket_is_refused(front: FrontProcess) -> None:
    received = raw_exchange(
        front,
        b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    assert not received.startswith(b"HTTP/1.1 101")


@pytest.mark.slow
def test_a_large_upload_streams_with_flat_memory(front: FrontProcess) -> None:
    chunk, chunks = os.urandom(MIB), 512
    before = front.memory_mib()
    peak = [before]

    def body() -> Iterator[bytes]:
        for i in range(chunks):
            if i % 32 == 0:
                peak.append(front.memory_mib())
            yield chunk

    answer = front.ask("POST", "/upload", body=body(), headers={"Content-Length": str(chunks * MIB)}).json()
    expected = hashlib.sha256()
    for _ in range(chunks):
        expected.update(chunk)
    assert answer == {"size": chunks * MIB, "sha256": expected.hexdigest()}
    assert max(peak) - before < 32


@pytest.mark.slow
def test_a_slow_client_of_a_large_download_does_not_fill_the_front(front: FrontProcess, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as stream:
        stream.truncate(512 * MIB)
    before = front.memory_mib()
    connection = front.connect()
    connection.request("GET", f"/file?path={tmp_path}/file")
    response = connection.getresponse()
    response.read(MIB)
    highest = before
    read_until = time.monotonic() + 1.5  # time in which an unbounded buffer would take hundreds of MiB
    while time.monotonic() < read_until:
        highest = max(highest, front.memory_mib())
        response.read(1000)
    assert highest - before < 32
    assert len(response.read()) > 500 * MIB
    connection.close()


def test_a_client_that_leaves_a_stream_cancels_it_in_the_web(front: FrontProcess, web_process: Web) -> None:
    connection = front.connect()
    connection.request("GET", "/endless")
    assert connection.getresponse().read(12) == b"data: tick\n\n"
    connection.close()
    wait_until(lambda: "stream cancelled" in web_process.events, f"cancelled: {web_process.events[-3:]}")


def test_a_client_that_leaves_an_upload_cuts_it_off_in_the_web(front: FrontProcess, web_process: Web) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin")
        wait_until(lambda: "upload began" in web_process.events, "the upload begins")
    wait_until(lambda: "upload cut off" in web_process.events, "the upload is cut off")
    assert "upload complete" not in web_process.events


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(front: FrontProcess) -> None:
    connection = front.connect()
    connection.request("GET", "/half")
    response = connection.getresponse()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()


def test_a_web_process_that_ends_before_its_answer_is_a_502(front: FrontProcess) -> None:
    answer = front.ask("GET", "/drop")
    assert (answer.status, answer.json()["error"]["code"]) == (502, "web_unavailable")
    assert answer.headers["Retry-After"] == "2"


def test_while_the_web_is_down_the_answer_is_503_and_then_all_is_well(front: FrontProcess, web_process: Web) -> None:
    web_process.stop()
    try:
        answer = front.ask("GET", "/echo")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "web_unavailable")
        assert answer.headers["Retry-After"] == "2"
        assert front.ask("GET", "/openai/v1/models").status == 200
    finally:
        web_process.start()
    assert front.ask("GET", "/echo").status == 200
