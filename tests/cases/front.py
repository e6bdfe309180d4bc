"""Bad input that no client library sends: raw bytes to the front process, with the real application behind it."""

from __future__ import annotations

import json
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application

from clavier.accounts.services import create_own_api_key, revoke_own_api_key
from clavier.files.models import StoredFile
from tests.cases.registry import Later, Scene, case
from tests.platform.test_front import FrontProcess

FORM = (
    b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="cut.bin"\r\n\r\n'
    + bytes(4 << 20)
    + b"\r\n--frontier--\r\n"
)


class UnixServer(ThreadedWSGIServer):
    """The application on a Unix socket; its threads have connections to the database of their own."""

    address_family = socket.AF_UNIX

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), QuietHandler)
        self.set_app(get_wsgi_application())

    def server_bind(self) -> None:
        """A path has no port."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "front", 0
        self.setup_environ()


class QuietHandler(WSGIRequestHandler):
    """Requests are not logged; a peer on a Unix socket has no address."""

    def address_string(self) -> str:
        return "unix"

    def get_environ(self) -> dict[str, Any]:
        self.client_address = ("127.0.0.1", 0)
        return super().get_environ()

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def front() -> Iterator[FrontProcess]:
    """The front process before the application."""
    with tempfile.TemporaryDirectory() as folder:
        server = UnixServer(Path(folder) / "web.sock")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        process = FrontProcess(Path(folder) / "web.sock")
        try:
            yield process
        finally:
            process.process.terminate()
            process.process.wait(10)
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def opened(scene: Scene, process: FrontProcess, length: int) -> Iterator[socket.socket]:
    """A connection on which the head of an upload has been sent."""
    key, secret = create_own_api_key(actor=scene.alice, name="raw")
    head = (
        "POST /api/file/file/uploadFolder HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept-Language: en\r\n"
        f"Authorization: Bearer {secret}\r\nContent-Type: multipart/form-data; boundary=frontier\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as raw:
        raw.sendall(head.encode())
        yield raw
    revoke_own_api_key(actor=scene.alice, key_id=key.pk)
    key.delete()


@case("FILE-022")
def a_body_that_breaks_off(scene: Scene) -> Any:
    with front() as process:
        with opened(scene, process, len(FORM)) as raw:
            raw.sendall(FORM[: len(FORM) // 2])
            wait_for(spooled, "half of the file has arrived")
        wait_for(lambda: not spooled(), "what had arrived is gone")
    assert not StoredFile.objects.filter(name="cut.bin").exists()
    return []


@case("FILE-023")
def a_body_longer_than_its_length(scene: Scene) -> Any:
    small = FORM[:80] + b"\r\n--frontier--\r\n"
    with front() as process, opened(scene, process, 10) as raw:
        raw.sendall(small)
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    status, _, rest = answer.partition(b"\r\n")
    assert b" 400 " in status, answer
    told = json.loads(rest.partition(b"\r\n\r\n")[2][: rest.index(b"}") + 1] or b"{}")
    return Later(told["error"], told["message"])


def spooled() -> list[Path]:
    """Uploads that are being received."""
    return [path for path in Path(settings.FILE_UPLOAD_TEMP_DIR).rglob("*") if path.is_file()]


def wait_for(holds: Any, what: str) -> None:
    """Until a condition holds. Raises AssertionError after a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
