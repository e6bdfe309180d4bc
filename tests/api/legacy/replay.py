"""Sends the examples (examples/*.json: the document's own requests and answers) in order, as its client would.

``bind``: where the document names an object of its own installation, this one's is sent. ``keep``: what an answer
gives to later examples. ``as_printed`` false: the document prints no (usable) request, this one is ours.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_framework.test import APIClient

from tests.api.legacy.conftest import form

EXAMPLES = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Exchange:
    """What was sent and what came back."""

    name: str
    example: dict[str, Any]
    sent: Any
    status: int
    answer: Any


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Name and content, in the order of the document."""
    paths = sorted(EXAMPLES.glob("*.json"), key=lambda path: path.stem)
    return [(path.stem, json.loads(path.read_text())) for path in paths]


def replay(client: APIClient, known: dict[str, str]) -> list[Exchange]:
    """Every example in order; ``known``: this installation's objects."""
    found = []
    for name, example in examples():
        sent, response = send(client, example, known)
        answer = response.json()
        if response.status_code == example["status"]:
            known |= {key: at(answer, path) for key, path in example.get("keep", {}).items()}
        found.append(Exchange(name, example, sent, response.status_code, answer))
    return found


def send(client: APIClient, example: dict[str, Any], known: dict[str, str]) -> tuple[Any, Any]:
    """What is sent after binding, and the response."""
    route, post = example["route"], client.post
    if "request_text" in example:
        return None, post(route, example["request_text"], content_type="application/json")
    sent = copy.deepcopy(example.get("request") or example.get("query") or example.get("form") or {})
    for path, key in example.get("bind", {}).items():
        if path.startswith("{"):
            route = route.replace(path, known[key])
        else:
            put(sent, path, known[key])
    if "form" in example:
        content = sent.pop("file").encode()
        return sent, post(route, **form("upload.txt", content, **sent))
    if example["method"] == "GET":
        return sent, client.get(route, sent)
    if "query" in example:
        return sent, post(f"{route}?{'&'.join(f'{name}={value}' for name, value in sent.items())}")
    return sent, post(route, sent, format="json")


def at(value: Any, path: str) -> Any:
    """The value at ``data.rows.0.id``."""
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def put(value: Any, path: str, new: Any) -> None:
    """Replace the value at a path."""
    head, _, last = path.rpartition(".")
    (at(value, head) if head else value)[last] = new
