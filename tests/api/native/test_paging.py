"""Cursor pages: every row once, in both directions, whatever is inserted meanwhile."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from datasets_app.models import Dataset
from tests.api.native.conftest import error_of

URL = "/api/v1/datasets"


def make(actor: Actor, number: int, **columns: Any) -> None:
    """Data sets of an actor; ``created_at`` may be the same for all."""
    for index in range(number):
        row = Dataset.objects.create(tenant_id=actor.tenant_id, created_by_id=actor.user_id, name=f"d{index}")
        Dataset.objects.filter(pk=row.pk).update(**columns)


def walk(client: APIClient, word: str, cursor: str | None, limit: int = 3) -> tuple[list[str], str | None]:
    """All names from a cursor on, and the last page's cursor in the other direction."""
    names: list[str] = []
    other = "previous" if word == "next" else "next"
    while True:
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = client.get(URL, query).json()
        found = [item["name"] for item in page["items"]]
        names = names + found if word == "next" else found + names
        if page[word] is None:
            return names, page[other]
        cursor = page[word]


@pytest.mark.parametrize("columns", [{}, {"created_at": datetime(2026, 1, 1, tzinfo=UTC)}])
def test_every_row_comes_once_forwards_and_backwards(
    alice: Actor, alice_client: APIClient, columns: dict[str, Any]
) -> None:
    make(alice, 8, **columns)
    forwards, last = walk(alice_client, "next", None)
    assert sorted(forwards) == [f"d{index}" for index in range(8)]
    backwards, _ = walk(alice_client, "previous", last)
    assert backwards == forwards[:6], "the last page had two rows"


def test_the_newest_comes_first_and_the_ends_have_no_cursor(alice: Actor, alice_client: APIClient) -> None:
    make(alice, 3)
    page = alice_client.get(URL).json()
    assert [item["name"] for item in page["items"]] == ["d2", "d1", "d0"]
    assert (page["next"], page["previous"]) == (None, None)


def test_rows_inserted_meanwhile_move_nothing(alice: Actor, alice_client: APIClient) -> None:
    make(alice, 6)
    first = alice_client.get(URL, {"limit": 3}).json()
    alice_client.post(URL, {"name": "new"}, "json")
    second = alice_client.get(URL, {"limit": 3, "cursor": first["next"]}).json()
    assert [item["name"] for item in first["items"] + second["items"]] == ["d5", "d4", "d3", "d2", "d1", "d0"]


def test_a_cursor_of_alice_shows_charlie_nothing(
    alice: Actor, alice_client: APIClient, charlie_client: APIClient
) -> None:
    make(alice, 4)
    cursor = alice_client.get(URL, {"limit": 2}).json()["next"]
    assert charlie_client.get(URL, {"cursor": cursor}).json()["items"] == []


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", "1.5", "", "9" * 30, "²"])
def test_a_limit_that_is_none_is_refused(alice_client: APIClient, limit: str) -> None:
    error = error_of(alice_client.get(URL, {"limit": limit}))
    assert (error["code"], error["field"]) == ("out_of_range", "limit")
    assert "1 to 200" in error["message"]


def forged(value: Any) -> str:
    """A cursor of one's own making."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    ["x", "%00", "中", forged({"id": 1, "tenant": 2}), forged([0, "yesterday", "1"]), forged([0, "2026-01-01", "1"]),
     forged([0, "2026-01-01T00:00:00Z", "no uuid"]), forged([7, "2026-01-01T00:00:00Z", str(Actor)]), forged(1),
     forged([[], {}, []])],
)  # fmt: skip
def test_a_forged_cursor_is_refused(alice_client: APIClient, cursor: str) -> None:
    response = alice_client.get(URL, {"cursor": cursor})
    assert (response.status_code, error_of(response)["code"]) == (400, "bad_cursor")
