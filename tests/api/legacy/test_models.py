"""3. Models: list, detail, versions, one version."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from models_app.models import ModelVersion
from tests.api.legacy.conftest import failure, payload
from tests.api.native.conftest import make_model

LIST = "/model/aiApplication/getAiApplicationList"
DETAIL = "/model/aiApplication/getAiApplicationDetail"
VERSIONS = "/model/aiApplicationVersion/getAiApplicationVersionList"
VERSION = "/model/aiApplicationVersion/getAiApplicationVersionDetail"


@pytest.fixture
def version(alice: Actor) -> ModelVersion:
    """A ready version of Alice's, as a client of this dialect would have described it."""
    made = make_model(alice, "客服模型")
    made.model.submitted = {"type": "LLM", "developer": "示例厂商", "hyperParameterList": [{"paramName": "top_p"}]}
    made.model.save()
    made.size_bytes, made.submitted = 2048, {"version": "0.0.1", "framework": 12, "label": "对话"}
    made.save()
    return made


def names(client: APIClient, **body: Any) -> list[str]:
    """Names on a page."""
    return [row["name"] for row in payload(client.post(LIST, body, format="json"))["rows"]]


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_list_is_paged_as_the_document_pages(alice_client: APIClient, version: ModelVersion, prefix: str) -> None:
    page = payload(alice_client.post(f"{prefix}{LIST}", {"pageNum": 0, "pageSize": 0, "queryInfo": {}}, format="json"))
    assert {**page, "rows": len(page["rows"])} == {"pageNum": 1, "pageSize": 10, "totalPage": 1, "total": 1, "rows": 1}


def test_the_list_is_filtered_by_a_few_fields_only(alice_client: APIClient, version: ModelVersion) -> None:
    assert names(alice_client, queryInfo={"name": "客服", "type": "", "status": 2}) == ["客服模型"]
    assert names(alice_client, queryInfo={"name": "其他"}) == []
    assert names(alice_client, queryInfo={"status": 1}) == []
    assert names(alice_client, queryInfo={"type": "LLM", "createUser": "alice"}) == ["客服模型"]
    unknown = alice_client.post(LIST, {"queryInfo": {"tenant__name": "two"}}, format="json")
    failure(unknown, 400, "unknown_field", "queryInfo.tenant__name")


def test_the_detail_adds_up_the_versions(alice_client: APIClient, alice: Actor, version: ModelVersion) -> None:
    found = payload(alice_client.get(DETAIL, {"aiApplicationId": str(version.model_id)}))
    assert found["name"] == "客服模型"
    assert (found["developer"], found["type"], found["status"]) == ("示例厂商", "LLM", 2)
    assert (found["aiApplicationVersionsCount"], found["aiApplicationVersionsSize"]) == (1, 2.0)
    assert (found["latestVersion"], found["isDelete"], found["loginUser"]) == ("0.0.1", 0, 1)
    assert (found["createUser"], found["userName"]) == (str(alice.user_id), "alice")
    assert len(found["createTime"]) == len("2023-10-31 11:49:18")


def test_a_version_has_every_documented_field(alice_client: APIClient, version: ModelVersion) -> None:
    found = payload(alice_client.get(VERSION, {"aiApplicationVersionId": str(version.pk)}))
    assert (found["version"], found["framework"], found["label"], found["size"]) == ("0.0.1", 12, "对话", 2.0)
    assert json.loads(found["hyperParameterList"]) == [{"paramName": "top_p"}]
    assert (found["status"], found["source"], found["saveType"]) == (2, 3, 2)
    assert str(version.path) not in json.dumps(found)


def test_the_list_of_versions_has_times_as_objects(alice_client: APIClient, version: ModelVersion) -> None:
    found = payload(alice_client.get(VERSIONS, {"aiApplicationId": str(version.model_id)}))
    assert [row["id"] for row in found] == [str(version.pk)]
    time = found[0]["createTime"]
    assert time["time"] == int(version.created_at.timestamp() * 1000)
    assert (time["year"] + 1900, time["month"] + 1) == (version.created_at.year, version.created_at.month)


def test_charlie_finds_nothing_of_alice(charlie_client: APIClient, version: ModelVersion) -> None:
    assert names(charlie_client) == []
    for route, name, key in (
        (DETAIL, "aiApplicationId", version.model_id),
        (VERSIONS, "aiApplicationId", version.model_id),
        (VERSION, "aiApplicationVersionId", version.pk),
    ):
        real = failure(charlie_client.get(route, {name: str(key)}), 404, "not_found", name)
        other = "00000000-0000-4000-8000-000000000000"
        assert failure(charlie_client.get(route, {name: other}), 404, "not_found").replace(other, str(key)) == real


def test_an_id_is_required_and_nothing_else_is_taken(alice_client: APIClient) -> None:
    failure(alice_client.get(DETAIL), 400, "required", "aiApplicationId")
    failure(alice_client.get(DETAIL, {"aiApplicationId": "1", "x": "1"}), 400, "unknown_field", "x")
    failure(alice_client.get(DETAIL, {"aiApplicationId": "no id"}), 404, "not_found", "aiApplicationId")
