"""The gateway over a real socket: who may ask, whom it asks, and what comes back."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from django.test import Client as Browser

from clavier.accounts.services import create_own_api_key, revoke_own_api_key
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from inference_app.gateway import Gateway
from inference_app.models import InferenceService
from inference_app.queries import NoHealthyReplica, choose_upstreams
from inference_app.services import create_service, stop_service
from models_app.models import ModelVersion, RegisteredModel
from runner.contract import folder
from tests.engine import make_engine

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(monkeypatch, home):
    return make_engine(monkeypatch)


@pytest.fixture
def service(engine, alice, home) -> InferenceService:
    """A service of Alice's whose replica says that it is ready."""
    model = RegisteredModel.objects.create(tenant_id=alice.tenant_id, created_by_id=alice.user_id, name="m")
    version = ModelVersion.objects.create(
        tenant_id=alice.tenant_id, created_by_id=alice.user_id, model=model, number=1, state="ready", source="path",
        folder=str(home),
    )  # fmt: skip
    engine.will(runs_for_s=None)
    made = create_service(actor=alice, name="helper", model_version=version.pk)
    engine.step()
    run = Run.objects.get(kind="replica")
    ready = run_folder(run.pk) / folder.READY
    ready.parent.mkdir(exist_ok=True)
    report = {
        "endpoint": {"unix": "/var/run/docker.sock"},
        "api_key": "of-the-replica",
        "served_name": "helper",
        "engine": "x",
    }
    ready.write_text(json.dumps(report))
    engine.step()
    return made


@pytest.fixture
def socket_path(service):
    """Where the replica's socket must be, by a path that is short enough to listen on."""
    place = os.open(run_folder(Run.objects.get(kind="replica").pk) / "work", os.O_RDONLY | os.O_DIRECTORY)
    yield f"/proc/self/fd/{place}/server.sock"
    os.close(place)


@asynccontextmanager
async def upstream(path: str, seen: list[Any]):
    """A server as a replica runs one."""

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append((request.headers["Authorization"], body))
        if body.get("stream"):
            answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await answer.prepare(request)
            try:
                for number in range(1000 if body.get("endless") else 3):
                    await answer.write(f'data: {{"n": {number}}}\n\n'.encode())
                    await asyncio.sleep(0.01)
                await answer.write(b"data: [DONE]\n\n")
            except (ConnectionResetError, asyncio.CancelledError):
                seen.append("cancelled")
                raise
            return answer
        return web.json_response({"choices": [{"message": {"content": "你好"}}], "model": body["model"]})

    app = web.Application()

    async def pooling(request: web.Request) -> web.Response:
        seen.append((request.headers["Authorization"], await request.json()))
        return web.json_response({"data": [{"index": 0, "object": "pooling", "data": [0.5]}]})

    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/pooling", pooling)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    yield
    await runner.cleanup()


class Exchange:
    """One request to the gateway, as a server would hand it over."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        self.scope = {
            "type": "http", "method": method, "path": path, "scheme": "http", "client": ("127.0.0.1", 1),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.status, self.headers, self.chunks = 0, {}, []

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.chunks.append(message.get("body", b""))

    async def go(self, gateway: Gateway) -> Exchange:
        await gateway(self.scope, self.incoming.get, self.send)
        return self

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))


def ask(
    headers: dict[str, str], path: str, seen: list[Any], endpoint: str = "chat/completions", **body: Any
) -> Exchange:
    """One question through a gateway of its own."""

    async def main() -> Exchange:
        async with upstream(path, seen):
            request = {"model": "helper", "messages": [{"role": "user", "content": "hi"}], **body}
            exchange = Exchange("POST", f"/openai/v1/{endpoint}", headers, json.dumps(request).encode())
            return await exchange.go(Gateway())

    return asyncio.run(main())


def key_of(actor, **limits) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_own_api_key(actor=actor, name='k', **limits)[1]}"}


def test_alice_and_bob_are_answered_with_the_replicas_own_key(service, alice, bob, socket_path):
    for actor in (alice, bob):
        seen: list[Any] = []
        exchange = ask(key_of(actor), socket_path, seen)
        assert exchange.status == 200
        assert exchange.json["choices"][0]["message"]["content"] == "你好"
        assert seen[0][0] == "Bearer of-the-replica"


def test_charlie_learns_nothing_of_the_service_of_alice(service, charlie, socket_path):
    seen: list[Any] = []
    exchange = ask(key_of(charlie), socket_path, seen)
    assert (exchange.status, exchange.json["error"]["code"]) == (404, "model_not_found")
    assert ask(key_of(charlie), socket_path, seen, model="never").status == 404
    assert seen == []


def test_a_reward_model_scores_and_does_not_chat(service, alice, charlie, socket_path):
    ModelVersion.objects.update(task="reward")
    seen: list[Any] = []
    scored = ask(key_of(alice), socket_path, seen, "pooling")
    assert (scored.status, scored.json["data"][0]["data"]) == (200, [0.5])
    assert seen[0][0] == "Bearer of-the-replica"
    for endpoint in ("chat/completions", "completions"):
        refused = ask(key_of(alice), socket_path, seen, endpoint)
        assert (refused.status, refused.json["error"]["code"]) == (400, "wrong_task")
        assert "POST /openai/v1/pooling" in refused.json["error"]["message"]
    stranger = ask(key_of(charlie), socket_path, seen, "pooling")
    assert (stranger.status, stranger.json["error"]["code"]) == (404, "model_not_found")
    assert len(seen) == 1


def test_a_model_that_writes_has_no_scores(service, alice, socket_path):
    seen: list[Any] = []
    refused = ask(key_of(alice), socket_path, seen, "pooling")
    assert (refused.status, refused.json["error"]["code"]) == (400, "wrong_task")
    assert "POST /openai/v1/chat/completions" in refused.json["error"]["message"]
    assert seen == []


def test_a_stream_comes_through_as_bytes(service, alice, socket_path):
    exchange = ask(key_of(alice), socket_path, [], stream=True)
    assert exchange.headers["content-type"] == "text/event-stream"
    assert b"".join(exchange.chunks).endswith(b"data: [DONE]\n\n")
    assert len(exchange.chunks) > 3


def test_the_server_stops_when_the_client_leaves(service, alice, socket_path):
    seen: list[Any] = []
    headers = key_of(alice)

    async def main() -> None:
        async with upstream(socket_path, seen):
            request = {"model": "helper", "messages": [], "stream": True, "endless": True}
            exchange = Exchange("POST", "/openai/v1/chat/completions", headers, json.dumps(request).encode())
            going = asyncio.ensure_future(exchange.go(Gateway()))
            while not exchange.chunks:
                await asyncio.sleep(0.01)
            exchange.incoming.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(going, 5)
            for _ in range(500):
                if "cancelled" in seen:
                    return
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert "cancelled" in seen


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "not_authenticated"),
        ({"Authorization": "Bearer nonsense"}, "invalid_token"),
        ({"Authorization": "Basic abc"}, "invalid_token"),
    ],
)
def test_without_a_good_key_the_server_is_never_asked(service, socket_path, headers, code):
    seen: list[Any] = []
    exchange = ask(headers, socket_path, seen)
    assert (exchange.status, exchange.json["error"]["code"]) == (401, code)
    assert exchange.headers["www-authenticate"].startswith("Bearer")
    assert seen == []


def test_a_key_that_was_just_revoked_is_refused(service, alice, socket_path):
    key, secret = create_own_api_key(actor=alice, name="k")
    headers = {"Authorization": f"Bearer {secret}"}
    assert ask(headers, socket_path, []).status == 200
    revoke_own_api_key(actor=alice, key_id=key.pk)
    assert ask(headers, socket_path, []).status == 401


def test_a_key_without_the_scope_inference_is_refused(service, alice, socket_path):
    exchange = ask(key_of(alice, scopes=["read", "write"]), socket_path, [])
    assert (exchange.status, exchange.json["error"]["code"]) == (403, "scope_missing")


def test_the_portals_session_asks_with_its_csrf_token_only(service, alice_user, socket_path):
    browser = Browser()
    browser.force_login(alice_user)
    session = browser.cookies["sessionid"].value
    token = "a" * 32
    cookie = {"Cookie": f"sessionid={session}; csrftoken={token}", "Host": "localhost"}
    assert ask(cookie, socket_path, []).json["error"]["code"] == "csrf_failed"
    assert ask({**cookie, "X-CSRFToken": token}, socket_path, []).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", "malformed_json"), (b"[]", "wrong_type"), (b"{}", "required"), (b"[" * 100_000, "malformed_json")],
)
def test_a_body_that_is_no_request_is_refused_in_words(service, alice, body, code):
    exchange = Exchange("POST", "/openai/v1/chat/completions", key_of(alice), body)
    asyncio.run(exchange.go(Gateway()))
    assert (exchange.status, exchange.json["error"]["code"]) == (400, code)


def test_a_dead_replica_and_a_stopped_service_are_said_to_be_so(service, alice, socket_path):
    exchange = Exchange("POST", "/openai/v1/chat/completions", key_of(alice), b'{"model": "helper"}')
    asyncio.run(exchange.go(Gateway()))
    assert (exchange.status, exchange.json["error"]["code"]) == (503, "no_healthy_replica")
    stop_service(actor=alice, service=InferenceService.objects.get())
    seen: list[Any] = []
    assert ask(key_of(alice), socket_path, seen).status == 503
    assert seen == []


def test_models_lists_the_services_of_the_own_tenant(service, alice, charlie):
    for actor, names in ((alice, ["helper"]), (charlie, [])):
        exchange = Exchange("GET", "/openai/v1/models", key_of(actor))
        asyncio.run(exchange.go(Gateway()))
        assert [model["id"] for model in exchange.json["data"]] == names


def test_an_unknown_address_names_what_is_served(service, alice):
    exchange = Exchange("POST", "/openai/v1/poems", key_of(alice))
    asyncio.run(exchange.go(Gateway()))
    assert (exchange.status, exchange.json["error"]["code"]) == (404, "no_such_endpoint")


def test_a_link_in_the_place_of_the_socket_leads_nowhere(service, alice, socket_path, tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        elsewhere = f"{place}/engine.sock"
        os.symlink(elsewhere, socket_path)
        seen: list[Any] = []
        assert ask(key_of(alice), elsewhere, seen).status == 503
        assert seen == []


def test_a_socket_of_another_user_is_not_dialled(service, alice, socket_path, settings):
    if os.geteuid() != 0:
        pytest.skip("only root can make a socket for another user")
    settings.CONTAINER_EXECUTORS = (settings.CLAVIER_EXECUTOR,)
    seen: list[Any] = []
    assert ask(key_of(alice), socket_path, seen).status == 503, "the socket is root's, not the tenant's"
    assert seen == []


@pytest.mark.parametrize(
    "endpoint",
    [
        {"host": "10.0.0.1", "port": "80"},
        {"host": "127.0.0.1", "port": 22},
        {"port": True},
        "unix",
        None,
        {"port": 70_000},
    ],
)
def test_a_report_that_names_another_service_of_this_machine_is_no_replica(service, alice, endpoint):
    ready = run_folder(Run.objects.get(kind="replica").pk) / folder.READY
    ready.write_text(json.dumps(json.loads(ready.read_text()) | {"endpoint": endpoint}))
    with pytest.raises(NoHealthyReplica):
        choose_upstreams(alice, "helper")
