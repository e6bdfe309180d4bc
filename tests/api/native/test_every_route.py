"""Every route of the OpenAPI document, seen by a stranger, by nobody, by a viewer and by another member."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from pytest_django import Settings
from rest_framework.test import APIClient

from tests.api.native.conftest import World, error_of

#: Says something of the caller or of the platform, to everybody who signed in.
FOR_ALL = {
    "/api/v1/me", "/api/v1/quota", "/api/v1/session", "/api/v1/recipes", "/api/v1/recipes/{recipe}/{method}",
    "/api/v1/model-presets", "/api/v1/resource-groups",
}  # fmt: skip
FOR_OPERATORS = {
    "/api/v1/nodes", "/api/v1/nodes/{name}", "/api/v1/gpus", "/api/v1/quotas", "/api/v1/quotas/{scope}/{name}",
}  # fmt: skip
#: Signing in twice is no harm, and the protocol of uploads has no key: the one that nobody goes on with expires.
WITHOUT_KEY = {"/api/v1/session", "/api/v1/uploads"}
#: What even members of the tenant do not see.
PRIVATE = ("/files/", "/uploads/")
FORMS = {"/api/v1/files", "/api/v1/datasets/{dataset_id}/versions"}
NOWHERE = "00000000-0000-4000-8000-000000000000"
BODIES: dict[str, Any] = {
    "/api/v1/runs/{run_id}": {"priority": 1},
    "/api/v1/fine-tune-tasks/{task_id}/model": {"name": "tuned"},
    "/api/v1/services/{service_id}/traffic": {"shares": [{"version": 1, "percent": 100}]},
    "/api/v1/nodes/{name}": {"is_schedulable": True},
    "/api/v1/gpus": {"node": "local", "uuid": "GPU-1", "memory_mib": 1},
    "/api/v1/tenant/members/{username}": {"role": "viewer"},
    "/api/v1/files/{file_id}/move": {"folder": "", "name": "moved"},
    "/api/v1/datasets/{dataset_id}": {"license": "MIT"},
    "/api/v1/models/{model_id}": {"license": "MIT"},
    "/api/v1/model-versions/{version_id}/export": {"form": "gguf"},
    "/api/v1/dataset-versions/{version_id}/derive": {"steps": [{"step": "deduplicate"}]},
    "/api/v1/dataset-versions/{version_id}/split": {"splits": {"train": 1}},
    "/api/v1/datasets/{dataset_id}/fetch": {"source": "url", "location": "https://host.example/a.jsonl"},
    "/api/v1/datasets/{dataset_id}/generate": {"plugin": NOWHERE},
    "/api/v1/dataset-versions/{version_id}/count-tokens": {"model_version": NOWHERE},
    "/api/v1/images/{image_id}": {"overview": "x"},
    "/api/v1/images/{image_id}/share": {"is_public": True},
    "/api/v1/images/{image_id}/import-archive": {"tag": "2", "file": NOWHERE},
    "/api/v1/images/{image_id}/import-from-registry": {"tag": "2", "reference": "hub.example/a:1"},
}


def schema() -> dict[str, Any]:
    """The OpenAPI document."""
    return cast(dict[str, Any], SchemaGenerator().get_schema(request=None, public=True))  # type: ignore[no-untyped-call]


def operations() -> Iterator[tuple[str, str]]:
    """(method, path) of each operation."""
    for path, methods in sorted(schema()["paths"].items()):
        for method in methods:
            yield method, path


OPERATIONS = list(operations())
ON_OBJECTS = [(method, path) for method, path in OPERATIONS if "{" in path and path not in FOR_ALL | FOR_OPERATORS]
LISTS = [
    path for method, path in OPERATIONS if method == "get" and "{" not in path and path not in FOR_ALL | FOR_OPERATORS
]


def filled(path: str, world: World, bobs_key: str) -> str:
    """The path with the ids of what Alice owns (and a key of Bob's)."""
    version = world.base.pk if "/model-versions/" in path else world.dataset_version.pk
    version = world.image.pk if "/image-versions/" in path else version
    task = world.evaluation.pk if "/evaluation-tasks/" in path else world.task.pk
    task = world.data_task.pk if "/data-tasks/" in path else task
    values = {
        "username": "bob", "key_id": bobs_key, "file_id": world.file.pk, "upload_id": world.upload.pk,
        "dataset_id": world.dataset_version.dataset_id,
        "version_id": version, "model_id": world.base.model_id, "image_id": world.image.image_id,
        "task_id": task, "service_id": world.service.pk, "search_id": world.search.pk, "store_id": world.store.pk,
        "plugin_id": world.plugin.pk,
        "run_id": world.run.pk, "recipe": "sft", "method": "lora", "name": "local", "scope": "tenant",
    }  # fmt: skip
    return path.format(**values)


def ask(client: APIClient, method: str, path: str, filled_path: str) -> Any:
    """A request with a body that the route understands."""
    form = "multipart" if path in FORMS else "json"
    options = {} if method == "get" else {"data": BODIES.get(path, {}), "format": form}
    return getattr(client, method)(filled_path, **options)


def test_the_document_is_valid_and_no_part_of_it_had_to_be_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    """What `manage.py spectacular --validate --fail-on-warn` checks."""
    document = schema()
    validate_schema(document)  # type: ignore[no-untyped-call]
    assert "Warning" not in capsys.readouterr().err
    ids = [spec["operationId"] for methods in document["paths"].values() for spec in methods.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


def test_every_operation_declares_a_tag_a_summary_and_its_errors() -> None:
    for path, methods in schema()["paths"].items():
        for method, spec in methods.items():
            assert spec["tags"], (method, path)
            assert spec["summary"], (method, path)
            assert {"401", "403"} <= set(spec["responses"]), (method, path)
            assert "404" in spec["responses"] or "{" not in path, (method, path)


def test_every_create_takes_an_idempotency_key() -> None:
    for path, methods in schema()["paths"].items():
        if "201" in methods.get("post", {}).get("responses", {}) and path not in WITHOUT_KEY:
            names = {parameter["name"] for parameter in methods["post"]["parameters"]}
            assert "Idempotency-Key" in names, path


def test_nobody_gets_a_401_on_every_route(anonymous_client: APIClient, world: World, bobs_key: str) -> None:
    for method, path in OPERATIONS:
        if (method, path) == ("post", "/api/v1/session"):
            continue
        response = ask(anonymous_client, method, path, filled(path, world, bobs_key))
        assert response.status_code == 401, (method, path)
        assert response["WWW-Authenticate"] == 'Bearer realm="clavier"'
        assert error_of(response)["code"] == "not_authenticated"


def test_charlie_gets_a_404_on_everything_of_alice(charlie_client: APIClient, world: World, bobs_key: str) -> None:
    for method, path in ON_OBJECTS:
        response = ask(charlie_client, method, path, filled(path, world, bobs_key))
        assert response.status_code == 404, (method, path, response.content)
        assert error_of(response)["code"] == "not_found"


def test_charlie_sees_nothing_of_alice_in_any_list(
    charlie_client: APIClient, alice_client: APIClient, world: World
) -> None:
    own = {"/api/v1/tenant/members": "charlie", "/api/v1/api-keys": "tests"}
    for path in LISTS:
        items = charlie_client.get(path).json()["items"]
        assert [item.get("username", item.get("name")) for item in items] == ([own[path]] if path in own else []), path
        assert alice_client.get(path).json()["items"], path


@pytest.mark.parametrize("who", ["alice_client", "bob_client", "viewer_client", "charlie_client"])
def test_who_is_no_operator_gets_a_403_on_what_operators_do(
    request: pytest.FixtureRequest, who: str, world: World, bobs_key: str
) -> None:
    client = request.getfixturevalue(who)
    for method, path in OPERATIONS:
        if path in FOR_OPERATORS:
            response = ask(client, method, path, filled(path, world, bobs_key))
            assert response.status_code == 403, (method, path, response.content)
            assert error_of(response)["code"] == "operators_only"


def test_bob_reads_what_alice_shares_and_deletes_none_of_it(bob_client: APIClient, world: World, bobs_key: str) -> None:
    own = "/api/v1/api-keys/{key_id}"
    for method, path in ON_OBJECTS:
        is_private = any(part in path for part in PRIVATE)
        if path == own or (method not in ("get", "delete") and not is_private):
            continue
        response = ask(bob_client, method, path, filled(path, world, bobs_key))
        if is_private:
            assert response.status_code == 404, (method, path)
        elif method == "delete":
            assert response.status_code == 403, (method, path, response.content)
        elif "/log/download" in path:
            assert response.status_code == 404, "no run has started, so there is no log yet"
        else:
            assert response.status_code == 200, (method, path, response.content)


def test_a_viewer_changes_nothing(viewer_client: APIClient, world: World, bobs_key: str) -> None:
    before = [world.task.run_id, world.service.desired_state]
    for method, path in ON_OBJECTS:
        if method == "get" or path in FORMS or "/api-keys/" in path or any(part in path for part in PRIVATE):
            continue
        response = ask(viewer_client, method, path, filled(path, world, bobs_key))
        assert response.status_code == 403, (method, path, response.content)
        error = error_of(response)
        assert "viewer" in error["message"] or error["code"] == "operators_only", (method, path)
    world.task.refresh_from_db()
    world.service.refresh_from_db()
    assert [world.task.run_id, world.service.desired_state] == before


def test_an_unknown_route_answers_in_the_same_form(anonymous_client: APIClient) -> None:
    for method in ("get", "post", "delete"):
        response = getattr(anonymous_client, method)("/api/v1/modles/")
        assert response.status_code == 404
        assert error_of(response)["code"] == "no_such_endpoint"
        assert "no slash" in error_of(response)["message"]


def test_the_document_and_its_page_are_served(anonymous_client: APIClient, settings: Settings) -> None:
    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
    assert anonymous_client.get("/api/schema").status_code == 200
    page = anonymous_client.get("/api/docs")
    assert page.status_code == 200
    assert b"cdn" not in page.content
