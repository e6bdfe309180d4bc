"""images, image-versions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from clavier.files.services import upload_file
from clavier.images.models import ImageVersion
from clavier.runs.models import Run
from tests.api.conftest import client_of
from tests.api.native.conftest import World, end, error_of, names, write
from tests.worlds import make_image_version

URL = "/api/v1/images"


@pytest.fixture
def archive(alice: Actor) -> str:
    """An uploaded file of Alice's."""
    upload = SimpleUploadedFile("busybox.tar", b"not looked at here")
    return str(upload_file(actor=alice, area="private", folder="", name="busybox.tar", upload=upload).pk)


@pytest.fixture
def operator_client(alice_user: User) -> APIClient:
    """Alice as an operator."""
    alice_user.is_staff = True
    alice_user.save()
    return client_of(alice_user)


def make(client: APIClient, name: str = "dzq/45", **more: Any) -> dict[str, Any]:
    answer = client.post(URL, {"name": name, **more}, "json")
    assert answer.status_code == 201, answer.json()
    made: dict[str, Any] = answer.json()
    return made


def test_an_image_is_registered_changed_and_deleted(alice_client: APIClient, charlie_client: APIClient) -> None:
    made = make(alice_client, labels=["训练", "nlp"], overview="x", icon="cube", description="long")
    assert (made["name"], made["labels"], made["is_public"]) == ("dzq/45", ["训练", "nlp"], False)
    assert error_of(alice_client.post(URL, {"name": "dzq/45"}, "json"))["code"] == "already_exists"
    assert charlie_client.get(URL).json()["items"] == []
    changed = alice_client.patch(f"{URL}/{made['id']}", {"name": "dzq/46", "labels": []}, "json").json()
    assert (changed["name"], changed["labels"], changed["overview"]) == ("dzq/46", [], "x")
    assert names(alice_client, URL, {"search": "46"}) == ["dzq/46"]
    assert names(alice_client, URL, {"search": "45"}) == []
    assert alice_client.delete(f"{URL}/{made['id']}").status_code == 204
    assert alice_client.get(f"{URL}/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"name": "Dzq/45:../x"}, "bad_name", "name"),
        ({"labels": ["a"]}, "required", "name"),
        ({"name": "a", "labels": "b"}, "wrong_type", "labels"),
        ({"name": "a", "image": "b"}, "unknown_field", "image"),
    ],
)
def test_a_bad_registration_names_its_field(
    alice_client: APIClient, body: dict[str, Any], code: str, field: str
) -> None:
    error = error_of(alice_client.post(URL, body, "json"))
    assert (error["code"], error["field"]) == (code, field)


def test_an_import_answers_at_once_and_shows_its_progress(alice_client: APIClient, node: None, archive: str) -> None:
    image = make(alice_client)
    body = {"tag": "1.36", "file": archive}
    answer = alice_client.post(f"{URL}/{image['id']}/import-archive", body, "json")
    assert answer.status_code == 201
    version = answer.json()
    assert (version["name"], version["state"], version["location"]) == (
        "dzq/45:1.36",
        "importing",
        "private/busybox.tar",
    )
    assert alice_client.get(f"/api/v1/runs/{version['run_id']}").json()["kind"] == "image_import"
    run = Run.objects.get(pk=version["run_id"])
    event = {"kind": "progress", "step": 5, "total_steps": 10}
    write(run, "metrics.jsonl", f"{json.dumps(event)}\n".encode())
    shown = alice_client.get(f"/api/v1/image-versions/{version['id']}").json()
    assert shown["import_progress"]["progress"]["step"] == 5
    again = error_of(alice_client.post(f"{URL}/{image['id']}/import-archive", body, "json"))
    assert (again["code"], again["field"]) == ("already_exists", "tag")


def test_a_failed_import_shows_why_in_words_and_as_a_word(alice_client: APIClient, node: None, archive: str) -> None:
    image = make(alice_client)
    url = f"{URL}/{image['id']}/import-archive"
    version = alice_client.post(url, {"tag": "1", "file": archive}, "json").json()
    run = Run.objects.get(pk=version["run_id"])
    write(run, "metrics.jsonl", b'{"kind": "error", "code": "bad_image", "message": "no manifest.json"}\n')
    end(run)
    shown = alice_client.get(f"/api/v1/image-versions/{version['id']}").json()
    assert (shown["state"], shown["error"], shown["message"]) == ("failed", "bad_image", "It ended.")
    assert alice_client.post(url, {"tag": "1", "file": archive}, "json").status_code == 201


def test_an_import_is_cancelled(alice_client: APIClient, bob_client: APIClient, node: None, archive: str) -> None:
    image = make(alice_client)
    version = alice_client.post(f"{URL}/{image['id']}/import-archive", {"tag": "1", "file": archive}, "json").json()
    url = f"/api/v1/image-versions/{version['id']}/cancel-import"
    assert bob_client.post(url, {}, "json").status_code == 403
    assert alice_client.post(url, {}, "json").json()["state"] == "failed"
    assert error_of(alice_client.post(url, {}, "json"))["code"] == "already_ended"


def test_a_pull_keeps_the_password_out_of_every_answer(alice_client: APIClient, node: None) -> None:
    image = make(alice_client)
    body = {"tag": "2", "reference": "hub.example/team/app:2", "username": "robot", "password": "s3cret-word"}
    answer = alice_client.post(f"{URL}/{image['id']}/import-from-registry", body, "json")
    assert (answer.status_code, answer.json()["source"]) == (201, "registry")
    run = alice_client.get(f"/api/v1/runs/{answer.json()['run_id']}")
    assert b"s3cret-word" not in answer.content + run.content
    assert "s3cret-word" not in json.dumps(Run.objects.get().spec)


@pytest.mark.parametrize(
    ("route", "body", "code", "field"),
    [
        ("import-archive", {"tag": "1.0 latest"}, "bad_name", "tag"),
        ("import-archive", {"file": "00000000-0000-4000-8000-000000000000"}, "not_found", "file"),
        ("import-archive", {"tag": None}, "required", "tag"),
        ("import-from-registry", {"reference": "app"}, "bad_value", "reference"),
    ],
)
def test_a_bad_import_names_its_field(
    alice_client: APIClient, node: None, archive: str, route: str, body: dict[str, Any], code: str, field: str
) -> None:
    image = make(alice_client)
    good = {"tag": "1", "file": archive} if route == "import-archive" else {"tag": "1", "reference": "hub.example/a"}
    error = error_of(alice_client.post(f"{URL}/{image['id']}/{route}", {**good, **body}, "json"))
    assert (error["code"], error["field"]) == (code, field)
    assert not ImageVersion.objects.exists()


def test_only_an_operator_shares_an_image(
    operator_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.image.image_id}"
    assert bob_client.post(f"{url}/share", {"is_public": True}, "json").status_code == 403
    assert charlie_client.get(f"{url}/versions").status_code == 404
    assert operator_client.post(f"{url}/share", {"is_public": True}, "json").json()["is_public"] is True
    assert [item["name"] for item in charlie_client.get(f"{url}/versions").json()["items"]] == ["dzq/45:1"]
    assert charlie_client.get(f"/api/v1/image-versions/{world.image.pk}").status_code == 200
    assert charlie_client.delete(f"/api/v1/image-versions/{world.image.pk}").status_code == 403
    assert charlie_client.patch(url, {"overview": "x"}, "json").status_code == 403


def test_a_tag_is_deleted(alice_client: APIClient, bob_client: APIClient, alice: Actor) -> None:
    version = make_image_version(alice)
    url = f"/api/v1/image-versions/{version.pk}"
    assert bob_client.delete(url).status_code == 403
    assert alice_client.delete(url).status_code == 204
    assert alice_client.get(url).status_code == 404
