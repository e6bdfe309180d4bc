"""What every model server goes through before users reach it: health, token parity, one answer, ``ready.json``."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runner.contract import exits, folder
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped
from runner.programs.lib.golden import GOLDEN_CONVERSATIONS
from runner.programs.lib.marks import Message
from runner.programs.lib.render import Renderer

#: The address of a Unix socket holds at most this many bytes on Linux.
MAX_SOCKET_PATH_BYTES = 107
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens: a Unix socket, or a loopback port."""

    unix: str | None = None
    host: str | None = None
    port: int | None = None

    def to_json(self) -> dict[str, Any]:
        """``{"unix": path}`` or ``{"host": ..., "port": ...}``."""
        return {"unix": self.unix} if self.unix else {"host": self.host, "port": self.port}


@dataclass(frozen=True, slots=True)
class Parity:
    """How much was compared: prompts and tokens, all equal."""

    conversations: int
    tokens: int


class ServerUnavailable(Exception):
    """The server does not answer (yet), or answered with an error; the message says what."""


class ServerClient:
    """JSON over HTTP to one server, on a Unix socket or a port."""

    def __init__(self, endpoint: Endpoint, api_key: str, timeout_s: float = 60.0) -> None:
        self.endpoint = endpoint
        self.api_key = api_key
        self._timeout_s = timeout_s

    def get(self, path: str) -> Any:
        """The decoded answer, or None for an empty one. Raises ServerUnavailable."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The decoded answer. Raises ServerUnavailable."""
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        connection = self._connection()
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailable(f"{method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ServerUnavailable(f"{method} {path}: {response.status} {text[:500]}")
        return json.loads(text) if text else None

    def _connection(self) -> http.client.HTTPConnection:
        if self.endpoint.unix:
            return _UnixConnection(self.endpoint.unix, self._timeout_s)
        return http.client.HTTPConnection(self.endpoint.host or "", self.endpoint.port, timeout=self._timeout_s)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def prepare_endpoint(context: ProgramContext) -> Endpoint:
    """A Unix socket inside the run folder, or a free loopback port where its path would be too long.

    What an earlier start left (socket, ready.json) is removed first.
    """
    (context.run_folder / folder.READY).unlink(missing_ok=True)
    path = context.work / "server.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH_BYTES:
        path.unlink(missing_ok=True)
        return Endpoint(unix=str(path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(host="127.0.0.1", port=int(probe.getsockname()[1]))


def new_api_key() -> str:
    """A secret that only the server and the gateway know."""
    return secrets.token_urlsafe(32)


def wait_until_healthy(
    context: ProgramContext, client: ServerClient, time_limit_s: float, still_alive: Callable[[], None]
) -> None:
    """Poll /health until it answers. ``still_alive`` raises when waiting is in vain.

    Raises Stopped on SIGTERM and ProgramError (code ``server_not_ready``) at the time limit.
    """
    deadline = time.monotonic() + time_limit_s
    while True:
        try:
            client.get("/health")
            return
        except ServerUnavailable as error:
            reason = str(error)
        raise_if_stopped(context)
        still_alive()
        if time.monotonic() > deadline:
            raise ProgramError(
                "server_not_ready",
                f"The model server did not become healthy within {time_limit_s:.0f} s (last answer: {reason}). "
                "Its own messages are above in the log.",
                exit_code=1,
            )
        time.sleep(_POLL_S)


def golden_prompts() -> Iterator[list[Message]]:
    """Prompts that end with a user turn: each golden conversation before its last answer, and with a turn after it."""
    for conversation in GOLDEN_CONVERSATIONS:
        messages: list[Message] = list(conversation)
        if messages[-1]["role"] == "assistant":
            yield messages[:-1]
            yield [*messages, {"role": "user", "content": "Go on."}]
        else:
            yield messages


def check_parity(server_token_ids: Callable[[Sequence[Message]], list[int]], renderer: Renderer) -> Parity:
    """Compare the server's prompt tokens with the trainer's on the golden prompts.

    Raises ProgramError with exit code RENDER_MISMATCH, naming the first differing token.
    """
    num_tokens = num_prompts = 0
    for number, messages in enumerate(golden_prompts(), start=1):
        try:
            ours = renderer.encode_prompt(messages)
        except ProgramError:  # the template itself refuses this conversation (no system turn, say), here as in training
            continue
        try:
            theirs = server_token_ids(messages)
        except ServerUnavailable as error:
            raise _refused(f"Golden prompt {number} can not be rendered by the server ({error}).") from error
        if ours != theirs:
            raise _refused(f"Golden prompt {number}: {_first_difference(renderer, ours, theirs)}.")
        num_prompts += 1
        num_tokens += len(ours)
    if num_prompts == 0:
        raise _refused("The chat template refuses every golden prompt, so nothing could be compared.")
    return Parity(num_prompts, num_tokens)


def check_one_answer(client: ServerClient, served_name: str) -> None:
    """Let the server answer once, as a user would. Raises ServerUnavailable when it gives no token."""
    question = {"role": "user", "content": "Hello"}
    body = {"model": served_name, "messages": [question], "max_tokens": 4, "temperature": 0}
    answer = client.post("/v1/chat/completions", body)
    if answer["usage"]["completion_tokens"] < 1:
        raise ServerUnavailable(f"the server answered without a token: {answer}")


def write_ready(
    context: ProgramContext,
    client: ServerClient,
    *,
    served_name: str,
    engine: str,
    parity: Parity | None,
    context_tokens: int,
) -> None:
    """Write ready.json, durable and readable by the platform's user only: it holds the server's API key.

    ``parity``: None for a server that makes its tokens with our own renderer.
    """
    path = context.run_folder / folder.READY
    value = {
        "endpoint": client.endpoint.to_json(),
        "api_key": client.api_key,
        "served_name": served_name,
        "engine": engine,
        "parity": asdict(parity) if parity else None,
        "context_tokens": context_tokens,
    }
    mask = os.umask(0o077)
    try:
        folder.write_json_durably(path, value)
    finally:
        os.umask(mask)
    compared = f" ({parity.tokens} golden tokens equal)" if parity else ""
    context.report.phase("ready", f"{engine} serves {served_name}{compared}")


def serve_until_stopped(context: ProgramContext, still_alive: Callable[[], None]) -> None:
    """Wait until SIGTERM, then raise Stopped. ``still_alive`` raises when the server has ended by itself."""
    while True:
        raise_if_stopped(context)
        still_alive()
        time.sleep(_POLL_S)


def raise_if_stopped(context: ProgramContext) -> None:
    """Raise Stopped once SIGTERM came."""
    if context.should_stop:
        raise Stopped("the model server was stopped on request")


def _first_difference(renderer: Renderer, ours: list[int], theirs: list[int]) -> str:
    pairs = enumerate(zip(ours, theirs, strict=False))
    position = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))

    def at(ids: list[int]) -> str:
        return f"{ids[position]} ({renderer.decode([ids[position]])!r})" if position < len(ids) else "nothing"

    return f"token {position} is {at(theirs)} in the server but {at(ours)} in training"


def _refused(reason: str) -> ProgramError:
    return ProgramError(
        "render_mismatch",
        f"{reason} The model would see other tokens than it was trained on, so it is not served. This server reads "
        "the chat template or the tokenizer differently: try the other server, or simplify the template.",
        field="model",
        exit_code=exits.RENDER_MISMATCH,
    )
