"""Stands between the platform and its engine, and spoils the creation of containers when it is told to."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer

REFUSAL = b'{"message": "no room for a container (chaos)"}'
PIECE = 2**16
#: What is left of a refused request comes within this time.
REST_S = 0.2


class EngineProxy:
    """Passes bytes on. ``refused`` and ``lost`` count what it has spoilt."""

    def __init__(self, place: Path, engine: Path) -> None:
        self.place, self.engine = place, engine
        self.refuse_until = self.lose_until = 0.0
        self.refused = self.lost = 0
        self._server = ThreadingUnixStreamServer(str(place), handler_of(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="engine proxy", daemon=True).start()

    @property
    def url(self) -> str:
        """What the platform connects to."""
        return f"unix://{self.place}"

    def refuse_creates(self, for_s: float) -> None:
        """For some seconds the engine answers 500."""
        self.refuse_until = time.monotonic() + for_s

    def lose_answers(self, for_s: float) -> None:
        """For some seconds containers are made, and nobody hears of it."""
        self.lose_until = time.monotonic() + for_s

    def close(self) -> None:
        """No more connections."""
        self._server.shutdown()
        self._server.server_close()


def handler_of(proxy: EngineProxy) -> type[BaseRequestHandler]:
    """One connection of a client."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as engine:
                engine.connect(str(proxy.engine))
                pass_on(proxy, self.request, engine)

    return Handler


def pass_on(proxy: EngineProxy, client: socket.socket, engine: socket.socket) -> None:
    """Until one side is done. A request begins a piece of its own, since clients wait for each answer."""
    is_lost = False
    while True:
        ready, _, _ = select.select([client, engine], [], [])
        if client in ready:
            data = client.recv(PIECE)
            is_create = data.startswith(b"POST ") and b"/containers/create" in data.split(b"\r\n", 1)[0]
            if is_create and time.monotonic() < proxy.refuse_until:
                proxy.refused += 1
                refuse(client)
                return
            if is_create and time.monotonic() < proxy.lose_until:
                proxy.lost += 1
                is_lost = True
            if not data:
                return
            engine.sendall(data)
        if engine in ready:
            data = engine.recv(PIECE)
            if not data or is_lost:
                return
            client.sendall(data)


def refuse(client: socket.socket) -> None:
    """Take the rest of the request and answer 500."""
    client.settimeout(REST_S)
    with suppress(TimeoutError):
        while client.recv(PIECE):
            pass
    head = f"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: {len(REFUSAL)}\r\n"
    client.sendall(head.encode() + b"Connection: close\r\n\r\n" + REFUSAL)
