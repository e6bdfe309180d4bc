"""The front door: a raw ASGI application that hands each request to the gateway or to the web process behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from clavier.core.proxy_headers import Scope, end_to_end, headers_to_web

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: An answer up to this size goes out in one piece.
SMALL_BODY_BYTES = 64 * 2**10
#: Django reads a body by its Content-Length only, so one without is collected here first, up to this size.
LARGEST_UNSIZED_BODY_BYTES = 8 * 2**20
#: Shorter than the 30 s after which granian closes an idle connection: a request never meets a dying one.
IDLE_CONNECTION_S = 15.0
CONNECT_TIMEOUT_S = 5.0
WATCH_AFTER_S = 0.05


class ClientGone(Exception):
    """The client left; there is nobody to answer."""


class Refused(Exception):
    """The front answers this one itself."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Front:
    """``/openai/v1/*`` goes to the gateway; everything else to the web process on a Unix socket, streamed both ways."""

    def __init__(self, *, web_socket: Path, gateway: Application) -> None:
        self._web_socket = web_socket
        self._gateway = gateway
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})  # refused before it is accepted: the client gets 403
        elif scope["path"].startswith("/openai/v1/"):
            await self._gateway(scope, receive, send)
        else:
            await self._proxy(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            if message["type"] == "lifespan.startup":
                self._session = _open_session(self._web_socket)
                await send({"type": "lifespan.startup.complete"})
        if self._session:
            await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _proxy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange with the web process, given up as soon as the client is gone."""
        body = _RequestBody(scope, receive)
        exchange = asyncio.current_task()
        assert exchange
        # Most exchanges are over before a watcher is worth its task.
        watch = asyncio.get_running_loop().call_later(WATCH_AFTER_S, body.watch, exchange.cancel)
        try:
            await self._exchange(scope, body, send)
        except asyncio.CancelledError:
            if not body.client_is_gone:
                raise  # the server stops
        finally:
            watch.cancel()
            body.unwatch()

    async def _exchange(self, scope: Scope, body: _RequestBody, send: Send) -> None:
        assert self._session, "the server runs the lifespan first"
        started = False
        try:
            data = await body.to_send()
            request = self._session.request(
                scope["method"], _url(scope), headers=headers_to_web(scope, data), data=data, allow_redirects=False
            )
            async with request as response:
                started = True
                await _answer(response, send)
        except ClientGone:
            return
        except Refused as refusal:
            await _send_error(send, refusal)
        except (aiohttp.ClientError, ConnectionError) as error:
            if body.client_is_gone:
                return
            if started:
                raise  # half an answer is out: the server cuts the connection, so nobody takes it for the whole
            await _send_error(send, _web_unavailable(error))


class _RequestBody:
    """The client's body, read as the web process takes it, and the news that the client left."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        names = {name for name, _ in scope["headers"]}
        self._receive = receive
        self._is_sized = b"content-length" in names
        self._is_present = self._is_sized or b"transfer-encoding" in names
        self._is_read = asyncio.Event()
        self._watcher: asyncio.Future[None] | None = None
        self.client_is_gone = False

    async def to_send(self) -> AsyncIterator[bytes] | bytes | None:
        """What aiohttp sends: nothing, a stream, or the whole of a body without Content-Length. Raises Refused."""
        if not self._is_present:
            self._is_read.set()
            return None
        return self._stream() if self._is_sized else await self._collect()

    def watch(self, gone: Callable[[], object]) -> None:
        """From now on call ``gone`` when the client leaves."""
        self._watcher = asyncio.ensure_future(self._watch(gone))

    def unwatch(self) -> None:
        """The exchange is over: nobody wants the news any more."""
        if self._watcher:
            self._watcher.cancel()

    async def _watch(self, gone: Callable[[], object]) -> None:
        await self._is_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_is_gone = True
        gone()

    async def _stream(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_is_gone = True
                raise ClientGone
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._is_read.set()

    async def _collect(self) -> bytes:
        collected = bytearray()
        async for chunk in self._stream():
            collected += chunk
            if len(collected) > LARGEST_UNSIZED_BODY_BYTES:
                limit = f"{LARGEST_UNSIZED_BODY_BYTES // 2**20} MiB"
                raise Refused(411, "length_required", f"A body over {limit} needs a Content-Length header; send one.")
        return bytes(collected)


def _open_session(web_socket: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(str(web_socket), limit=0, keepalive_timeout=IDLE_CONNECTION_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        read_bufsize=2**18,
    )


def _url(scope: Scope) -> URL:
    """The path and query as the client wrote them, byte for byte."""
    query = scope["query_string"]
    return URL(
        f"http://web{scope['raw_path'].decode('latin-1')}{'?' + query.decode('latin-1') if query else ''}", encoded=True
    )


async def _answer(response: aiohttp.ClientResponse, send: Send) -> None:
    headers = end_to_end(list(response.raw_headers))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.content_length is not None and response.content_length <= SMALL_BODY_BYTES:
        await send({"type": "http.response.body", "body": await response.read()})
        return
    async for chunk in response.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _web_unavailable(error: Exception) -> Refused:
    if isinstance(error, aiohttp.ClientConnectorError):
        return Refused(503, "web_unavailable", "The web process is starting or stopped. Try again in a few seconds.")
    return Refused(
        502, "web_unavailable", "The web process ended before it answered. Look whether it was done; try again."
    )


async def _send_error(send: Send, refusal: Refused) -> None:
    body = json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status >= 500:
        headers.append((b"retry-after", b"2"))
    with suppress(ConnectionError):
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
