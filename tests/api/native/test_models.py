"""models, model-versions, model-presets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from models_app.models import ModelVersion
from tests.api.native.conftest import World, error_of, make_model
from tests.api.native.test_files import content_of

URL = "/api/v1/models"


@pytest.fixture
def server_folder(tmp_path: Path, settings: Settings) -> Path:
    """A folder from which models may be registered."""
    settings.MODEL_PATHS = [tmp_path]
    (tmp_path / "qwen").mkdir()
    return tmp_path / "qwen"


def test_a_registration_answers_the_version_that_is_being_imported(
    alice_client: APIClient, charlie_client: APIClient, node: None, server_folder: Path
) -> None:
    body = {"name": "qwen", "source": "path", "location": str(server_folder), "license": "apache-2.0", "tags": ["zh"]}
    made = alice_client.post(URL, body, "json")
    assert made.status_code == 201
    version = made.json()
    assert (version["name"], version["state"], version["source"]) == ("qwen@1", "importing", "path")
    assert version["lineage"] == [{"id": version["id"], "name": "qwen@1"}]
    assert alice_client.get(f"/api/v1/runs/{version['run_id']}").json()["kind"] == "model_import"
    model = alice_client.get(f"{URL}/{version['model']['id']}").json()
    assert (model["license"], model["tags"]) == ("apache-2.0", ["zh"])
    assert alice_client.post(URL, body, "json").json()["name"] == "qwen@2"
    assert charlie_client.get(URL).json()["items"] == []


def test_a_registration_from_hub_and_from_files(alice_client: APIClient, node: None, world: World) -> None:
    hub = {"name": "a", "source": "modelscope", "location": "Qwen/Qwen2.5-0.5B-Instruct", "revision": "master"}
    assert alice_client.post(URL, hub, "json").status_code == 201
    mine = {"name": "b", "source": "folder", "location": "private/data"}
    assert alice_client.post(URL, mine, "json").status_code == 201


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"source": "ftp"}, "not_a_choice", "source"),
        ({"source": "fine_tune"}, "not_a_choice", "source"),
        ({"location": "/etc"}, "path_outside_root", "location"),
        ({"source": "huggingface", "location": "../x"}, "bad_value", "location"),
        ({"source": "folder", "location": "private/none"}, "not_found", "location"),
        ({"name": "  "}, "required", "name"),
    ],
)
def test_a_bad_registration_names_its_field(
    alice_client: APIClient, node: None, changes: dict[str, str], code: str, field: str
) -> None:
    error = error_of(alice_client.post(URL, {"name": "a", "source": "path", "location": "/x", **changes}, "json"))
    assert (error["code"], error["field"]) == (code, field)


def test_bob_gives_no_version_to_the_model_of_alice(
    bob_client: APIClient, node: None, world: World, server_folder: Path
) -> None:
    body = {"name": "base", "source": "path", "location": str(server_folder)}
    assert bob_client.post(URL, body, "json").status_code == 403


def test_an_import_is_cancelled(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, node: None, server_folder: Path
) -> None:
    body = {"name": "qwen", "source": "path", "location": str(server_folder)}
    version = alice_client.post(URL, body, "json").json()
    url = f"/api/v1/model-versions/{version['id']}"
    assert charlie_client.post(f"{url}/cancel-import").status_code == 404
    assert bob_client.post(f"{url}/cancel-import").status_code == 403
    refused = alice_client.get(f"{url}/download")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "not_ready")
    assert alice_client.post(f"{url}/cancel-import").json()["state"] == "failed"
    assert error_of(alice_client.post(f"{url}/cancel-import"))["code"] == "already_ended"
    assert alice_client.delete(url).status_code == 204


def test_a_download_is_a_tar_of_the_length_it_says(alice_client: APIClient, world: World) -> None:
    response = alice_client.get(f"/api/v1/model-versions/{world.base.pk}/download")
    content = content_of(response)
    assert len(content) == int(response["Content-Length"])
    assert response["Content-Disposition"] == 'attachment; filename="base-1.tar"'
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["base-1/config.json"]


def test_a_tuned_version_tells_its_lineage(alice_client: APIClient, alice: Actor, world: World) -> None:
    tuned = ModelVersion.objects.create(
        tenant_id=alice.tenant_id, created_by_id=alice.user_id, model=world.base.model, number=2, state="ready",
        source="fine_tune", format="adapter", base_version=world.base, dataset_version=world.dataset_version,
    )  # fmt: skip
    found = alice_client.get(f"/api/v1/model-versions/{tuned.pk}").json()
    assert [item["name"] for item in found["lineage"]] == ["base@2", "base@1"]
    assert (found["base_version"]["name"], found["dataset_version"]["name"]) == ("base@1", "faq v1")
    listed = alice_client.get(f"{URL}/{world.base.model_id}/versions").json()["items"]
    assert [item["number"] for item in listed] == [2, 1]


def test_change_and_delete_are_for_the_owner(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, alice: Actor, world: World
) -> None:
    url = f"{URL}/{world.base.model_id}"
    for client, status in ((charlie_client, 404), (bob_client, 403), (alice_client, 200)):
        assert client.patch(url, {"description": "new", "tags": ["a"]}, "json").status_code == status
    make_model(alice, "other")
    assert error_of(alice_client.patch(url, {"name": "other"}, "json"))["code"] == "already_exists"
    refused = alice_client.delete(url)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "in_use")
    unused = next(item for item in alice_client.get(f"{URL}?search=other").json()["items"])
    assert alice_client.delete(f"{URL}/{unused['id']}").status_code == 204


def test_presets_are_listed(alice_client: APIClient, charlie_client: APIClient) -> None:
    presets = charlie_client.get("/api/v1/model-presets").json()["items"]
    assert presets == alice_client.get("/api/v1/model-presets").json()["items"]
    assert "Qwen/Qwen2.5-0.5B-Instruct" in {preset["modelscope"] for preset in presets}


def test_lists_take_the_same_number_of_queries_however_long(
    alice_client: APIClient, alice: Actor, world: World, django_assert_num_queries: Callable[[int], Any]
) -> None:
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(2):
            alice_client.get(URL)
        with django_assert_num_queries(3):
            alice_client.get(f"{URL}/{world.base.model_id}/versions")
        make_model(alice, f"m{number}")
        ModelVersion.objects.create(
            tenant_id=alice.tenant_id, created_by_id=alice.user_id, model=world.base.model, number=number + 2,
            source="fine_tune", base_version=world.base, dataset_version=world.dataset_version,
        )  # fmt: skip
