"""The data path of serving: key -> service -> replica, answers passed through as bytes.

A raw ASGI callable in front of Django's handler; the database is asked in a few threads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from uuid import uuid4

import aiohttp
from django.db import close_old_connections

from clavier.core.actor import Actor
from clavier.core.errors import DomainError, Forbidden, Invalid, NotFound, TooLarge, quoted
from inference_app.credentials import actor_of_headers
from inference_app.dialing import ReplicaConnector
from inference_app.queries import NoHealthyReplica, Upstream, choose_upstreams, served_models

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = TypeVar("Answer")

PREFIX = "/openai/v1/"
PROXIED = {"chat/completions", "completions", "pooling"}
MAX_BODY_BYTES = 16 * 2**20
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=600)
PASSED_HEADERS = {b"content-type", b"cache-control"}
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "server_error"}


class ClientGone(Exception):
    """Nobody reads the answer any more."""


class Gateway:
    """Keeps one HTTP session per server address and a few threads for the database."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[Any, ...], aiohttp.ClientSession] = {}
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="gateway-db")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid4().hex
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            return
        except DomainError as error:
            await send_error(send, error.status, error.code, error.message, error.field, request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            await send_error(send, 500, "internal_error", f"Something went wrong ({request_id}).", None, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].removeprefix(PREFIX).rstrip("/"), scope["method"]
        headers = dict(scope["headers"])
        if path in PROXIED and method == "POST":
            request = parse_request(await read_body(receive, headers))
            actor = await self._in_thread(inference_actor, scope, headers)
            upstreams = await self._in_thread(choose_upstreams, actor, request["model"], path)
            await self._forward(upstreams, path, request, receive, send)
        elif method == "GET" and (path == "models" or path.startswith("models/")):
            actor = await self._in_thread(inference_actor, scope, headers)
            models = await self._in_thread(served_models, actor)
            await send_json(send, 200, models_answer(models, path.removeprefix("models").strip("/")))
        else:
            raise NotFound(
                f"There is no {method} {scope['path']}. POST /openai/v1/chat/completions, "
                "POST /openai/v1/completions, POST /openai/v1/pooling and GET /openai/v1/models are served.",
                code="no_such_endpoint",
            )

    async def _forward(
        self, upstreams: list[Upstream], path: str, request: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        """Ask the first replica that takes the connection; another one only before the first byte."""
        for upstream in upstreams:
            body = json.dumps({**request, "model": upstream.served_name}, ensure_ascii=False).encode()
            exchange = asyncio.ensure_future(self._exchange(upstream, path, body, send))
            gone = asyncio.ensure_future(disconnected(receive))
            done, _ = await asyncio.wait({exchange, gone}, return_when=asyncio.FIRST_COMPLETED)
            for task in {exchange, gone} - done:
                task.cancel()  # closes the connection: the server stops generating
            if exchange not in done:
                with suppress(asyncio.CancelledError, aiohttp.ClientError):
                    await exchange
                raise ClientGone
            try:
                exchange.result()
            except aiohttp.ClientConnectorError as error:
                logger.warning("a replica of %s does not answer: %s", upstream.service, error)
                continue
            return
        raise NoHealthyReplica("No replica of the service takes connections now; try again shortly.", field="model")

    async def _exchange(self, upstream: Upstream, path: str, body: bytes, send: Send) -> None:
        headers = {"Authorization": f"Bearer {upstream.api_key}", "Content-Type": "application/json"}
        origin = "http://replica" if upstream.port is None else f"http://127.0.0.1:{upstream.port}"
        session = self._session(upstream)
        async with session.post(f"{origin}/v1/{path}", data=body, headers=headers) as response:
            passed = [(n.lower(), v) for n, v in response.raw_headers if n.lower() in PASSED_HEADERS]
            passed.append((b"x-accel-buffering", b"no"))
            await send({"type": "http.response.start", "status": response.status, "headers": passed})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    def _session(self, upstream: Upstream) -> aiohttp.ClientSession:
        key = (upstream.run_id, upstream.owners, upstream.port)
        session = self._sessions.get(key)
        if session is None or session.closed:
            connector: aiohttp.BaseConnector = (
                ReplicaConnector(upstream.run_id, upstream.owners)
                if upstream.port is None
                else aiohttp.TCPConnector(limit=0)
            )
            session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, auto_decompress=False)
            self._sessions[key] = session
        return session

    async def _in_thread(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        def call() -> Answer:
            close_old_connections()
            try:
                return function(*arguments)
            finally:
                close_old_connections()

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def inference_actor(scope: Scope, headers: dict[bytes, bytes]) -> Actor:
    """The actor of the request's credential. Raises NotAuthenticated, Forbidden (``scope_missing``)."""
    actor = actor_of_headers(scope, headers)
    if "inference" not in actor.scopes:
        raise Forbidden("This API key has no scope 'inference'.", code="scope_missing")
    return actor


async def read_body(receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """The whole body. Raises TooLarge, ClientGone."""
    body = bytearray()
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise TooLarge("The request is larger than 16 MiB.")
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge("The request is larger than 16 MiB.")
        if not message.get("more_body"):
            return bytes(body)


def parse_request(body: bytes) -> dict[str, Any]:
    """The JSON object of a request, with its model. Raises Invalid."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The body is not JSON: {error}.", code="malformed_json") from error
    if not isinstance(request, dict):
        raise Invalid("The body must be a JSON object.", code="wrong_type")
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise Invalid("model is required: the name of a service.", code="required", field="model")
    return request


def models_answer(models: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The list, or the one model asked for. Raises NotFound (``model_not_found``)."""
    if not wanted:
        return {"object": "list", "data": models}
    for model in models:
        if model["id"] == wanted:
            return model
    raise NotFound(f"There is no service {quoted(wanted)} for this key.", code="model_not_found", field="model")


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(
    send: Send, status: int, value: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """One JSON answer."""
    body = json.dumps(value, ensure_ascii=False).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, status: int, code: str, message: str, field: str | None, request_id: str) -> None:
    """An error in the form of the OpenAI API."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": field, "code": code, "request_id": request_id}
    headers = ((b"www-authenticate", b'Bearer realm="clavier"'),) if status == 401 else ()
    with suppress(Exception):  # the start may be out already; then the connection is simply cut
        await send_json(send, status, {"error": error}, headers)


gateway = Gateway()
