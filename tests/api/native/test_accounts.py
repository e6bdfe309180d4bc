"""me, tenant/members, api-keys, session, quota."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import Client
from pytest_django import Settings
from rest_framework.test import APIClient

from clavier.accounts.models import ApiKey, User
from tests.api.native.conftest import error_of


def test_me_says_who_the_key_stands_for(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    me = alice_client.get("/api/v1/me").json()
    assert me["user"]["username"] == "alice"
    assert (me["tenant"]["name"], me["tenant"]["role"]) == ("one", "owner")
    assert me["scopes"] == ["inference", "read", "write"]
    assert bob_client.get("/api/v1/me").json()["tenant"]["role"] == "member"
    assert charlie_client.get("/api/v1/me").json()["tenant"]["name"] == "two"


def test_an_owner_adds_changes_and_removes_a_member(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    url = "/api/v1/tenant/members"
    assert bob_client.post(url, {"username": "charlie"}, "json").status_code == 403
    added = alice_client.post(url, {"username": "charlie", "role": "viewer"}, "json")
    assert (added.status_code, added.json()["role"]) == (201, "viewer")
    assert error_of(alice_client.post(url, {"username": "charlie"}, "json"))["code"] == "already_exists"
    assert alice_client.patch(f"{url}/charlie", {"role": "member"}, "json").json()["role"] == "member"
    assert charlie_client.get("/api/v1/me").json()["tenant"]["name"] == "two", "the key acts where it was made"
    assert alice_client.delete(f"{url}/charlie").status_code == 204
    assert {item["username"] for item in alice_client.get(url).json()["items"]} == {"alice", "bob"}


def test_the_last_owner_stays(alice_client: APIClient, bob_client: APIClient) -> None:
    response = alice_client.delete("/api/v1/tenant/members/alice")
    assert (response.status_code, error_of(response)["code"]) == (409, "last_owner")


def test_a_removed_member_is_shut_out_at_once(alice_client: APIClient, bob_client: APIClient) -> None:
    assert alice_client.delete("/api/v1/tenant/members/bob").status_code == 204
    assert bob_client.get("/api/v1/me").status_code == 401


def test_a_new_key_shows_its_secret_once_and_works(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    body = {"name": "chat", "scopes": ["read", "inference"], "expires_at": "2099-01-01T00:00:00Z"}
    made = alice_client.post("/api/v1/api-keys", body, "json").json()
    fresh = APIClient()
    fresh.credentials(HTTP_AUTHORIZATION=f"Bearer {made['secret']}")
    assert fresh.get("/api/v1/me").json()["scopes"] == ["inference", "read"]
    listed = alice_client.get("/api/v1/api-keys").json()["items"]
    assert listed[0]["id"] == made["id"]
    assert not any("secret" in key for key in listed)
    for stranger in (bob_client, charlie_client):
        assert stranger.delete(f"/api/v1/api-keys/{made['id']}").status_code == 404
    assert alice_client.delete(f"/api/v1/api-keys/{made['id']}").status_code == 204
    assert fresh.get("/api/v1/me").status_code == 401


def test_a_key_never_gets_more_than_the_key_that_makes_it(alice_client: APIClient) -> None:
    made = alice_client.post("/api/v1/api-keys", {"name": "a", "scopes": ["read", "write"]}, "json").json()
    weak = APIClient()
    weak.credentials(HTTP_AUTHORIZATION=f"Bearer {made['secret']}")
    response = weak.post("/api/v1/api-keys", {"name": "b", "scopes": ["inference"]}, "json")
    assert (response.status_code, error_of(response)["code"]) == (403, "scope_missing")


def test_an_idempotent_key_creation_never_stores_the_secret(alice_client: APIClient) -> None:
    headers: dict[str, Any] = {"HTTP_IDEMPOTENCY_KEY": "k1"}
    first = alice_client.post("/api/v1/api-keys", {"name": "a"}, "json", **headers)
    second = alice_client.post("/api/v1/api-keys", {"name": "a"}, "json", **headers)
    assert second.json() == {**first.json(), "secret": None}
    assert ApiKey.objects.filter(name="a").count() == 1


def test_sign_in_gives_a_cookie_and_a_csrf_token_that_are_needed_together(alice_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    credentials = {"username": "alice", "password": "alice-secret-1"}
    signed_in = client.post("/api/v1/session", credentials, "application/json")
    assert signed_in.status_code == 201
    assert signed_in.json()["tenant"]["name"] == "one"
    assert client.get("/api/v1/me").json()["user"]["username"] == "alice"
    refused = client.post("/api/v1/datasets", {"name": "a"}, "application/json")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "csrf_failed")
    again = client.post("/api/v1/session", credentials, "application/json")
    assert again.status_code == 201, "an old cookie does not stand in the way"
    token = {"HTTP_X_CSRFTOKEN": again.json()["csrf_token"]}
    assert client.post("/api/v1/datasets", {"name": "a"}, "application/json", **token).status_code == 201
    assert client.delete("/api/v1/session", **token).status_code == 204
    assert client.get("/api/v1/me").status_code == 401


def test_too_many_wrong_passwords_lock_the_door(alice_user: User, client: Client, settings: Settings) -> None:
    settings.AXES_FAILURE_LIMIT = 3
    wrong = {"username": "alice", "password": "wrong"}
    answers = [client.post("/api/v1/session", wrong, "application/json") for _ in range(4)]
    assert answers[0].status_code == 401
    assert error_of(answers[0])["code"] == "invalid_credentials"
    assert answers[-1].status_code == 429
    assert error_of(answers[-1])["code"] == "too_many_attempts"
    assert int(answers[-1]["Retry-After"]) == int(django_settings.AXES_COOLOFF_TIME * 3600)
    right = {"username": "alice", "password": "alice-secret-1"}
    assert client.post("/api/v1/session", right, "application/json").status_code == 429
    elsewhere = client.post("/api/v1/session", right, "application/json", REMOTE_ADDR="10.0.0.9")
    assert elsewhere.status_code == 201


def test_quota_tells_limits_and_storage(alice_client: APIClient, charlie_client: APIClient) -> None:
    alice_client.post("/api/v1/files/folders", {"name": "data"}, "json")
    quota = alice_client.get("/api/v1/quota").json()
    assert quota["limits"] == []
    assert quota["storage"]["inodes_used"] == 1
    assert charlie_client.get("/api/v1/quota").json()["storage"]["inodes_used"] == 0


@pytest.mark.parametrize("path", ["tenant/members", "api-keys"])
def test_lists_take_the_same_number_of_queries_however_long(
    path: str, alice_client: APIClient, bob_client: APIClient, django_assert_num_queries: Callable[[int], Any]
) -> None:
    alice_client.get(f"/api/v1/{path}")
    for _ in range(2):
        with django_assert_num_queries(2):
            alice_client.get(f"/api/v1/{path}")
        alice_client.post("/api/v1/api-keys", {"name": "more"}, "json")
        bob_client.post("/api/v1/api-keys", {"name": "more"}, "json")
