"""6. Evaluations: create, page, detail."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from evaluation_app.models import EvaluationTask
from tests.api.legacy.conftest import ENGLISH, failure, form, payload
from tests.api.native.conftest import end, make_dataset, make_model

CREATE, PAGE, DETAIL = "/model/evaluation/task/create", "/model/evaluation/task/page", "/model/evaluation/task/detail/"


@pytest.fixture
def body(alice_client: APIClient, alice: Actor, node: None) -> dict[str, Any]:
    """A request to judge Alice's own model with her own script, as the document writes one."""
    for folder, name in (("opencompass-0.1.2", "run.py"), ("llama2-13b", "config.json"), ("questions", "q.jsonl")):
        payload(alice_client.post("/api/file/file/uploadFolder", **form(name, b"{}", currentPath=f"/{folder}")))
    return {
        "name": "evaluation-test",
        "image": "platform",
        "command": "python3 run.py configs/eval_llama2_13b.py -w ${output_dir} --model_dir ${model_dir}",
        "inputType": "local",
        "inputDir": "/questions",
        "modelType": "local",
        "modelDir": "/llama2-13b",
        "outputDir": "/opencompass-out",
        "workDir": "/opencompass-0.1.2",
        "resource": {"cpuNumber": 1, "memory": 1, "gpuResource": {"gpuShare": "none", "gpuNum": 0, "gpuCores": ""}},
        "env": [{"HF_TOKEN": "secret"}, {"LEVEL": "3"}],
        "description": "客服模型",
    }


def post(client: APIClient, route: str, body: dict[str, Any], **headers: Any) -> Any:
    """A JSON request."""
    return client.post(route, body, format="json", **headers)


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_an_evaluation_is_created_paged_and_shown(alice_client: APIClient, body: dict[str, Any], prefix: str) -> None:
    response = post(alice_client, prefix + CREATE, body)
    made = payload(response)
    assert response.json()["message"] == "创建模型评估任务成功"
    page = payload(post(alice_client, prefix + PAGE, {"userId": "", "status": "", "taskName": ""}))
    assert (page["total"], page["rows"][0]["id"], page["rows"][0]["status"]) == (1, made["id"], "Pending")
    assert set(page["rows"][0]) == {"id", "name", "status", "runTime", "description", "creatorId", "createTime"}
    found = payload(alice_client.get(f"{prefix}{DETAIL}{made['id']}"))
    same = set(body) - {"resource", "env"}
    assert {name: found[name] for name in same} == {name: body[name] for name in same}
    assert found["env"] == '[{"HF_TOKEN":"***"},{"LEVEL":"3"}]'
    assert found["resource"]["cpuNumber"] == 1
    assert found["resourceGroupName"] == "default"
    assert found["resourceGroupKey"].startswith("resourceGroup")


def test_the_group_of_the_detail_is_taken_back(alice_client: APIClient, body: dict[str, Any]) -> None:
    found = payload(alice_client.get(DETAIL + payload(post(alice_client, CREATE, body))["id"]))
    named = {name: found[name] for name in ("resourceGroupId", "resourceGroupName", "resourceGroupKey")}
    payload(post(alice_client, CREATE, {**body, **named, "name": "again"}))
    wrong = {**named, "resourceGroupKey": "resourceGroupOBwEzW5u6RjazuzI"}
    failure(post(alice_client, CREATE, {**body, **wrong}), 404, "not_found", "resourceGroupKey")


def test_data_sets_and_model_versions_are_judged_too(
    alice_client: APIClient, alice: Actor, body: dict[str, Any]
) -> None:
    data, model = make_dataset(alice), make_model(alice)
    del body["inputDir"], body["modelDir"]
    shared = {"inputType": "dataset", "modelType": "aiApp", "aiAppVersionId": str(model.pk)}
    for name, which in (("a", {"datasetId": str(data.pk)}), ("b", {"datasetId": str(data.dataset_id)}),
                        ("c", {"datasetName": "faq"})):  # fmt: skip
        made = payload(post(alice_client, CREATE, {**body, **shared, **which, "name": name}))
        task = EvaluationTask.objects.get(pk=made["id"])
        assert (task.dataset_version, task.model_version) == (data, model)
    for field, wrong in (("datasetName", "none"), ("aiAppVersionName", "none"), ("storageMedium", "1203")):
        both = {**body, **shared, "datasetId": str(data.pk), "name": "d", field: wrong}
        failure(post(alice_client, CREATE, both), 400, "conflicting_fields", field)
    found = payload(alice_client.get(DETAIL + made["id"]))
    named = {name: found[name] for name in ("datasetId", "datasetName", "aiAppVersionName")}
    payload(post(alice_client, CREATE, {**body, **shared, **named, "name": "e"}))
    assert (found["datasetName"], found["aiAppVersionName"], found["modelType"]) == ("faq", "base@1", "aiApp")


def test_the_documents_empty_sample_misses_its_required_fields(alice_client: APIClient) -> None:
    empty = dict.fromkeys(("name", "image", "command", "outputDir", "resource", "env", "inputType", "workDir"))
    response = post(alice_client, CREATE, empty, **ENGLISH)
    message = failure(response, 400, "required")
    assert [problem["field"] for problem in response.json()["problems"]] == [
        "name", "image", "command", "outputDir", "resource",
    ]  # fmt: skip
    assert all(name in message for name in ("name", "image", "command", "outputDir", "resource"))


@pytest.mark.parametrize(
    ("change", "status", "error", "field"),
    [
        ({"outputDirr": "/x"}, 400, "unknown_field", "outputDirr"),
        ({"datasetId": "1"}, 400, "conflicting_fields", "inputType"),
        ({"aiAppVersionId": "1"}, 400, "conflicting_fields", "modelType"),
        ({"inputType": "", "datasetName": "faq"}, 400, "conflicting_fields", "inputType"),
        ({"inputType": "dataset", "inputDir": ""}, 400, "required", "datasetId"),
        ({"modelType": "aiApp", "modelDir": "", "aiAppVersionName": "none"}, 400, "required", "aiAppVersionId"),
        ({"image": "none:1"}, 404, "not_found", "image"),
        ({"workDir": "../../etc"}, 400, "path_outside_root", "workDir"),
        ({"command": "run ${model_dirr}"}, 400, "unknown_placeholder", "command"),
    ],
)
def test_what_is_wrong_is_named(
    alice_client: APIClient, body: dict[str, Any], change: dict[str, Any], status: int, error: str, field: str
) -> None:
    failure(post(alice_client, CREATE, {**body, **change}), status, error, field)
    assert EvaluationTask.objects.count() == 0


def test_a_page_past_the_end_is_empty_and_knows_the_total(alice_client: APIClient, body: dict[str, Any]) -> None:
    payload(post(alice_client, CREATE, body))
    page = payload(post(alice_client, PAGE, {"pageNum": 999_999, "pageSize": 10}))
    assert page == {"pageNum": 999_999, "pageSize": 10, "totalPage": 1, "total": 1, "rows": []}


def test_filters_know_every_word_for_a_state(alice_client: APIClient, body: dict[str, Any]) -> None:
    task = EvaluationTask.objects.get(pk=payload(post(alice_client, CREATE, body))["id"])
    assert task.run
    end(task.run)
    assert payload(post(alice_client, PAGE, {"status": "FAILED", "taskName": "evaluation"}))["total"] == 1
    assert payload(post(alice_client, PAGE, {"status": "Succeeded"}))["total"] == 0
    failure(post(alice_client, PAGE, {"status": "odd"}), 400, "not_a_choice", "status")


def test_charlie_sees_and_makes_nothing_of_alices(
    charlie_client: APIClient, alice_client: APIClient, alice_user: User, body: dict[str, Any]
) -> None:
    made = payload(post(alice_client, CREATE, body))
    failure(charlie_client.get(DETAIL + made["id"]), 404, "not_found")
    assert payload(post(charlie_client, PAGE, {}))["total"] == 0
    failure(post(charlie_client, PAGE, {"userId": str(alice_user.pk)}), 403, "identity_mismatch", "userId")
    response = post(charlie_client, CREATE, body)
    failure(response, 404, "not_found")
    assert response.json()["field"] in ("workDir", "inputDir", "modelDir")
    failure(charlie_client.get(f"{DETAIL}no-id"), 404, "not_found")
