"""The form of failures, and what bodies and query strings may not be."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from tests.api.conftest import client_of
from tests.api.native.conftest import error_of

URL = "/api/v1/evaluation-tasks"


def post(client: APIClient, body: bytes | str, content_type: str = "application/json") -> Any:
    """The body as it is."""
    return client.generic("POST", URL, body, content_type)  # type: ignore[arg-type]  # bytes are sent as they are


def test_all_bad_fields_come_in_one_answer(alice_client: APIClient) -> None:
    response = alice_client.post(
        URL, {"name": 5, "model_version": "x", "limit": 0, "metrics": ["bleu", "blue"]}, "json"
    )
    assert response.status_code == 400
    found = {problem["field"]: problem["code"] for problem in error_of(response)["problems"]}
    assert found == {
        "name": "wrong_type", "model_version": "wrong_type", "dataset_version": "required", "limit": "out_of_range",
        "metrics.1": "not_a_choice",
    }  # fmt: skip


def test_an_unknown_field_names_the_one_that_was_meant(alice_client: APIClient) -> None:
    error = error_of(alice_client.post("/api/v1/datasets", {"name": "a", "tagss": ["x"]}, "json"))
    assert (error["code"], error["field"]) == ("unknown_field", "tagss")
    assert "did you mean tags?" in error["message"]
    assert "problems" not in error


def test_an_unknown_filter_is_not_ignored(alice_client: APIClient) -> None:
    error = error_of(alice_client.get("/api/v1/datasets?serach=x"))
    assert (error["code"], error["field"]) == ("unknown_field", "serach")


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ('{"name": "a",\n "metrics": [}', "malformed_json", "line 2, column 14"),
        ('{"name": "a", "name": "b"}', "duplicate_key", "'name'"),
        ('{"limit": NaN}', "malformed_json", "NaN"),
        ('{"limit": -Infinity}', "malformed_json", "Infinity"),
        ('{"limit": 1e999}', "out_of_range", "1e999"),
        ('{"limit": ' + "9" * 5000 + "}", "out_of_range", "limit"),
        ('{"name": "\\ud800"}', "malformed_json", "surrogate"),
        ("[" * 10_000 + "]" * 10_000, "too_deep", "100"),
        ('{"a":' * 101 + "1" + "}" * 101, "too_deep", "100"),
        ("[]", "wrong_type", "object"),
        (b'{"name": "\xff"}', "malformed_json", "UTF-8"),
        ('{"name": null}', "required", "name"),
        ('{"limit": true}', "wrong_type", "limit"),
        ('{"limit": "5"}', "wrong_type", "limit"),
        ('{"limit": 5.5}', "wrong_type", "limit"),
    ],
)
def test_a_body_that_is_no_plain_json_is_refused(
    alice_client: APIClient, body: bytes | str, code: str, said: str
) -> None:
    response = post(alice_client, body)
    assert response.status_code == 400
    error = error_of(response)
    problems = error.get("problems", [error])
    assert any(problem["code"] == code and said in problem["message"] for problem in problems), error


def test_a_body_of_another_type_is_a_415(alice_client: APIClient) -> None:
    response = post(alice_client, '{"name": "a"}', "text/plain")
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"
    assert "application/json" in error_of(response)["message"]


def test_a_json_body_over_16_mib_is_a_413(alice_client: APIClient) -> None:
    response = post(alice_client, '{"name": "' + "x" * (16 * 2**20) + '"}')
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"
    assert "16 MiB" in error_of(response)["message"]


def test_a_method_that_is_none_is_a_405_naming_those_that_are(alice_client: APIClient) -> None:
    response = alice_client.put("/api/v1/me", {}, "json")
    assert response.status_code == 405
    assert "GET" in response["Allow"]
    assert error_of(response)["code"] == "method_not_allowed"


def test_a_failure_of_ours_is_a_500_without_a_traceback_in_the_body(
    alice_client: APIClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("the secret is out")

    monkeypatch.setattr("clavier.api.native.nouns.runs.visible_runs", broken)
    response = alice_client.get("/api/v1/runs")
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal"
    assert b"secret" not in response.content
    assert "the secret is out" in caplog.text
    assert error_of(response)["request_id"] in caplog.text


def test_a_key_that_is_none_and_a_key_without_the_scope_are_told_apart(
    alice_user: User, anonymous_client: APIClient
) -> None:
    anonymous_client.credentials(HTTP_AUTHORIZATION="Bearer ' OR 1=1--")
    response = anonymous_client.get("/api/v1/me")
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_token")
    response = client_of(alice_user, ["read"]).post("/api/v1/datasets", {"name": "a"}, "json")
    assert (response.status_code, error_of(response)["code"]) == (403, "scope_missing")


def test_an_answer_is_json_whatever_accept_says(alice_client: APIClient) -> None:
    assert alice_client.get("/api/v1/me", HTTP_ACCEPT="text/csv").status_code == 200


def test_a_header_does_not_override_the_method(alice_client: APIClient) -> None:
    response = alice_client.get("/api/v1/me", HTTP_X_HTTP_METHOD_OVERRIDE="DELETE")
    assert response.status_code == 200
