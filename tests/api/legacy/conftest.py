"""What the tests of the platform API share: answers in their envelopes, an operator, the user of the document."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.accounts.services import create_user
from tests.api.conftest import client_of

ENGLISH = {"HTTP_ACCEPT_LANGUAGE": "en"}
#: First part of a route -> payload, codes and the code of success.
ENVELOPES = {
    "file": ("result", ("errorCode",), 200),
    "docker": ("result", ("errorCode",), 200),
    "system": ("result", ("errorCode",), 200),
    "resource": ("result", ("errorCode",), 200),
    "kernel": ("data", ("returnCode",), 0),
    "model": ("data", ("code",), 200),
    "model/evaluation": ("data", ("state", "status", "code"), 200),
}


def form(name: str | None = "a.txt", content: bytes = b"hello", **fields: str) -> dict[str, Any]:
    """A multipart request as a browser sends a folder: the file's name may have a path in it."""
    return forms([] if name is None else [(name, content)], **fields)


def forms(files: list[tuple[str, bytes]], **fields: str) -> dict[str, Any]:
    """The same with several files. Django's test client would cut the names, so the bytes are written here."""
    head = b"--frontier\r\nContent-Disposition: form-data; name="
    parts = [head + f'"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    for name, content in files:
        about = f'"file"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        parts.append(head + about.encode() + content + b"\r\n")
    body = b"".join(parts) + b"--frontier--\r\n"
    return {"data": body, "content_type": "multipart/form-data; boundary=frontier"}


def envelope_of(route: str) -> tuple[str, tuple[str, ...], int]:
    """Payload, codes and code of success of a route."""
    bare = route.removeprefix("/").removeprefix("api/")
    return ENVELOPES["model/evaluation" if bare.startswith("model/evaluation") else bare.split("/")[0]]


def payload(response: Any) -> Any:
    """The payload of a success, in the route's envelope."""
    assert response.status_code == 200, response.content.decode()
    key, codes, success = envelope_of(response.wsgi_request.path)
    body = response.json()
    assert set(body) == {"success", "message", key, *codes}
    assert body["success"] is True
    assert {body[code] for code in codes} == {success}
    assert body["message"]
    return body[key]


def failure(response: Any, status: int, error: str, field: str | None = None) -> str:
    """The message of a failure, after its envelope was checked."""
    body = response.json()
    assert response.status_code == status, body
    key, codes, _ = envelope_of(response.wsgi_request.path)
    assert set(body) - {"problems"} == {"success", "message", key, "error", "field", "request_id", *codes}
    code = 701 if status == 400 and "docker/image" in response.wsgi_request.path else status
    assert body["success"] is False
    assert body[key] is None
    assert {body[name] for name in codes} == {code}
    assert body["request_id"] == response["X-Request-Id"]
    assert body["error"] == error, body
    if field is not None:
        assert body["field"] == field, body
    return str(body["message"])


@pytest.fixture
def operator_user(db: None) -> User:
    """An operator of the platform."""
    return create_user(username="olga", tenant_name="operators", password="olga-secret-55", is_operator=True)[0]


@pytest.fixture
def operator_client(operator_user: User) -> APIClient:
    """An operator with a key."""
    return client_of(operator_user)
