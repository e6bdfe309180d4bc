"""Implementations of the catalogue of bad inputs: one function for each case, which sends it and hands back answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from tests.engine import RealEngine

CATALOGUE = Path(__file__).with_name("bad_inputs.yaml")
ENGLISH = {"HTTP_ACCEPT_LANGUAGE": "en"}
Send = Callable[["Scene"], Any]
IMPLEMENTED: dict[str, Send] = {}
#: Cases that the platform answers otherwise than the catalogue, each with the decision that says why; their functions
#: look at the answer themselves.
DECIDED_OTHERWISE = {"API-034": "0007", "ARC-014": "0006", "CMD-030": "0008", "QUOTA-001": "0007", "QUOTA-004": "0007"}


@dataclass(frozen=True)
class Later:
    """What a program says after the request was answered; the catalogue's HTTP status does not bind it."""

    code: str | None
    message: str


@dataclass
class Scene:
    """Alice sends; the victim is a stranger who owns one of everything that a case names."""

    alice: Actor
    client: APIClient
    anonymous: APIClient
    operator: APIClient
    victim: User
    #: A victim's object -> its id or name.
    victims: dict[str, str]
    #: Requests that would succeed: route -> body.
    bodies: dict[str, dict[str, Any]]
    #: An engine that starts real processes; made when a case first asks for it.
    engine: Callable[[], RealEngine]

    def post(self, route: str, body: Any = None, client: APIClient | None = None, **headers: Any) -> Any:
        """A JSON request in English; ``body`` replaces fields of the one that would succeed."""
        whole = {**self.bodies.get(route, {}), **(body or {})}
        return (client or self.client).post(route, whole, format="json", **ENGLISH, **headers)

    def raw(self, route: str, data: str | bytes, content_type: str = "application/json", **headers: Any) -> Any:
        """A request with these bytes."""
        return self.client.post(route, data, content_type=content_type, **ENGLISH, **headers)


def case(case_id: str) -> Callable[[Send], Send]:
    """Register the implementation of a case."""

    def register(send: Send) -> Send:
        assert case_id not in IMPLEMENTED, case_id
        IMPLEMENTED[case_id] = send
        return send

    return register


def catalogue() -> list[dict[str, Any]]:
    """Every case."""
    found: list[dict[str, Any]] = yaml.safe_load(CATALOGUE.read_text())["cases"]
    return found
