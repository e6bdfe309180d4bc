"""4. and 5. Fine-tuning and pretraining: create, list, detail, the administrator's list."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.api.legacy.shapes.tuning import detail_of
from clavier.core.actor import Actor
from finetune_app.models import FineTuneTask
from finetune_app.profile import COMMON, FINE_TUNE
from tests.api.conftest import client_of
from tests.api.legacy.conftest import ENGLISH, failure, form, payload
from tests.api.native.conftest import end, make_dataset, make_model

CREATE = "/kernel/fineTune/createLlmFineTuneTask"
LIST = "/kernel/fineTune/listLlmFineTuneTask"
DETAIL = "/kernel/fineTune/queryLlmFineTuneTaskDetail"
MANAGE = "/kernel/fineTuneManage/listFineTuneTaskManage"


@pytest.fixture
def body(alice: Actor, node: None) -> dict[str, Any]:
    """A request for a LoRA on Alice's data, with the document's own hyperparameters."""
    return {
        "name": "客服微调 v1",
        "describe": "🤖 第一次",
        "createWay": "system",
        "fineTuneStrategy": "LoRA",
        "modelVersionId": str(make_model(alice).pk),
        "datasetVersionId": str(make_dataset(alice).pk),
        "commonHyperParameters": [
            {"name": "learning_rate", "value": "1e-4", "description": "学习率"},
            {"name": "num_train_epochs", "value": "1", "description": "训练轮数"},
        ],
        "fineTuneHyperParameters": [{"name": "lora_r", "value": "8", "description": "LoRA微调的秩大小"}],
        "resource": [{"nodeType": "master", "numbers": 1, "cpuNumber": 1, "memory": 1, "gpuResource": {"gpuNum": 0}}],
        "isPretrain": 0,
        "type": "PyTorch",
    }


def post(client: APIClient, route: str, body: dict[str, Any], **headers: Any) -> Any:
    """A JSON request."""
    return client.post(route, body, format="json", **headers)


def names(client: APIClient, route: str = LIST, **body: Any) -> list[str]:
    """Names on a page."""
    return [row["name"] for row in payload(post(client, route, body))["rows"]]


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_lora_is_created_and_its_id_comes_back(alice_client: APIClient, body: dict[str, Any], prefix: str) -> None:
    made = payload(post(alice_client, prefix + CREATE, body))
    task = FineTuneTask.objects.get(pk=made["taskId"])
    assert made == {"taskId": str(task.pk), "id": str(task.pk), "name": "客服微调 v1", "status": "Pending"}
    assert (task.recipe, task.method, task.description) == ("sft", "lora", "🤖 第一次")
    assert (task.hyperparameters["learning_rate"], task.hyperparameters["lora_r"]) == (1e-4, 8)
    assert (task.resources["cpu_milli"], task.resources["memory_mib"]) == (1000, 1024)


def test_every_field_comes_back_in_the_detail(alice_client: APIClient, body: dict[str, Any]) -> None:
    body |= {"jobName": "j", "devices": "all", "podDelete": 1, "resourceType": "标准模式", "isUrgentTask": "NO"}
    made = payload(post(alice_client, CREATE, body))
    found = payload(alice_client.post(f"{DETAIL}?taskId={made['taskId']}"))
    expected = {**body, "isUrgentTask": False}
    assert {name: found[name] for name in expected} == expected
    assert (found["status"], found["userName"], found["runTime"]) == ("Pending", "alice", "")


def test_the_detail_reads_its_id_from_query_form_and_json(alice_client: APIClient, body: dict[str, Any]) -> None:
    task_id = payload(post(alice_client, CREATE, body))["taskId"]
    form = "application/x-www-form-urlencoded"
    asked = [
        alice_client.post(f"/api{DETAIL}?taskId={task_id}"),
        alice_client.post(DETAIL, f"taskId={task_id}", content_type=form),
        post(alice_client, DETAIL, {"taskId": task_id}),
    ]
    assert [payload(response)["taskId"] for response in asked] == [task_id] * 3
    failure(alice_client.post(DETAIL), 400, "required", "taskId")


def test_pretraining_is_told_apart(alice_client: APIClient, alice: Actor, node: None) -> None:
    text = make_dataset(alice, "corpus", '{"text": "你好，世界"}\n' * 5)
    made = payload(post(alice_client, CREATE, {"name": "pre", "isPretrain": 1, "datasetVersionId": str(text.pk)}))
    assert FineTuneTask.objects.get(pk=made["taskId"]).recipe == "pretrain"
    assert names(alice_client, isPretrain=1) == ["pre"]
    assert names(alice_client, isPretrain=0) == []
    assert names(alice_client) == ["pre"]


def test_a_list_shows_the_callers_own_tasks(
    alice_client: APIClient, bob_client: APIClient, body: dict[str, Any]
) -> None:
    payload(post(alice_client, CREATE, body))
    assert names(alice_client, pageNum=0, pageSize=0, status="", taskName="", userId="") == ["客服微调 v1"]
    assert names(bob_client) == []
    assert names(bob_client, MANAGE) == ["客服微调 v1"]


@pytest.mark.parametrize("word", ["Pending", "PENDING", "queued", "init"])
def test_a_status_is_understood_in_every_dialects_words(
    alice_client: APIClient, body: dict[str, Any], word: str
) -> None:
    payload(post(alice_client, CREATE, body))
    assert names(alice_client, status=word) == ["客服微调 v1"]
    assert [names(alice_client, status=other) for other in ("Succeeded", "FINETUNE", "created")] == [[], [], []]
    assert "Succeeded" in failure(post(alice_client, LIST, {"status": "odd"}), 400, "not_a_choice", "status")


def test_an_ended_task_says_why(alice_client: APIClient, body: dict[str, Any]) -> None:
    task = FineTuneTask.objects.get(pk=payload(post(alice_client, CREATE, body))["taskId"])
    assert task.run
    end(task.run)
    found = payload(post(alice_client, DETAIL, {"taskId": str(task.pk)}))
    assert (found["status"], found["message"]) == ("Failed", "程序失败：It ended.")


def test_another_user_is_refused_the_same_whether_it_exists(
    charlie_client: APIClient, alice_user: User, body: dict[str, Any]
) -> None:
    for route in (LIST, MANAGE):
        real = failure(post(charlie_client, route, {"userId": str(alice_user.pk)}), 403, "identity_mismatch", "userId")
        assert failure(post(charlie_client, route, {"userId": "999999999"}), 403, "identity_mismatch") == real
    failure(post(charlie_client, CREATE, {**body, "userId": str(alice_user.pk)}), 403, "identity_mismatch", "userId")


def test_charlie_sees_no_task_of_alice(
    charlie_client: APIClient, alice_client: APIClient, body: dict[str, Any]
) -> None:
    task_id = payload(post(alice_client, CREATE, body))["taskId"]
    failure(post(charlie_client, DETAIL, {"taskId": task_id}), 404, "not_found", "taskId")
    assert names(charlie_client) == names(charlie_client, MANAGE) == []
    failure(post(charlie_client, CREATE, body), 404, "not_found", "modelVersionId")
    assert FineTuneTask.objects.count() == 1


def test_an_operator_acts_for_a_user_only_with_the_header(
    operator_client: APIClient, alice_client: APIClient, alice_user: User, body: dict[str, Any]
) -> None:
    payload(post(alice_client, CREATE, body))
    user = str(alice_user.pk)
    assert "X-Act-As" in failure(post(operator_client, LIST, {"userId": user}), 403, "identity_mismatch", "userId")
    acting = {"HTTP_X_ACT_AS": user}
    assert payload(post(operator_client, LIST, {"userId": user}, **acting))["total"] == 1
    made = payload(post(operator_client, CREATE, {**body, "name": "for alice"}, **acting))
    assert FineTuneTask.objects.get(pk=made["taskId"]).created_by == alice_user
    failure(post(operator_client, LIST, {}, HTTP_X_ACT_AS="nobody"), 404, "not_found", "X-Act-As")


def test_the_header_gives_nobody_else_anything(charlie_client: APIClient, alice_user: User) -> None:
    for name in ("alice", "nobody"):
        failure(post(charlie_client, LIST, {}, HTTP_X_ACT_AS=name), 403, "identity_mismatch", "X-Act-As")


def test_an_operator_sees_all_tenants_in_the_management_list(
    operator_client: APIClient, alice_client: APIClient, body: dict[str, Any], alice_user: User
) -> None:
    payload(post(alice_client, CREATE, body))
    assert names(operator_client, MANAGE) == names(operator_client, MANAGE, userName="ali") == ["客服微调 v1"]
    assert names(operator_client, MANAGE, userId=str(alice_user.pk)) == ["客服微调 v1"]
    assert names(operator_client, MANAGE, userId="charlie") == []
    assert names(operator_client) == []


def test_all_bad_fields_are_reported_at_once(alice_client: APIClient, body: dict[str, Any]) -> None:
    body["resource"][0] |= {"cpuNumber": -1, "memory": 0, "gpuResource": {"gpuNum": True}}
    response = post(alice_client, CREATE, {**body, "fineTuneStrategy": "QLoRA++", "outputDirr": "/x"}, **ENGLISH)
    message = failure(response, 400, response.json()["error"])
    problems = {problem["field"]: problem["error"] for problem in response.json()["problems"]}
    assert problems == {
        "resource[0].cpuNumber": "out_of_range",
        "resource[0].memory": "out_of_range",
        "resource[0].gpuResource.gpuNum": "wrong_type",
        "fineTuneStrategy": "not_a_choice",
        "outputDirr": "unknown_field",
    }
    assert all(part in message for part in (">= 0", ">= 1", "LoRA", "FineTune", "did you mean outputDir?"))


def test_a_refused_hyperparameter_is_named_where_it_was_written(alice_client: APIClient, body: dict[str, Any]) -> None:
    body["fineTuneHyperParameters"] = [{"name": "lora_rr", "value": "8"}]
    message = failure(post(alice_client, CREATE, body), 400, "unknown_field", "fineTuneHyperParameters[0]")
    assert "lora_r" in message


def test_a_field_that_can_not_be_honoured_is_refused(alice_client: APIClient, body: dict[str, Any]) -> None:
    failure(post(alice_client, CREATE, {**body, "rdma": "YES"}), 422, "unprocessable", "rdma")
    pretraining = {**body, "isPretrain": 1, "algorithmId": "sft"}
    failure(post(alice_client, CREATE, pretraining), 400, "conflicting_fields", "isPretrain")
    failure(post(alice_client, CREATE, {**body, "type": "TensorFlow"}), 422, "unprocessable", "type")
    stored = post(alice_client, CREATE, {**body, "storageMedium": 1203}, **ENGLISH)
    assert "createWay=custom" in failure(stored, 422, "unprocessable", "storageMedium")


def test_secrets_among_the_variables_are_not_kept(alice_client: APIClient, custom: dict[str, Any]) -> None:
    variables = [{"HF_TOKEN": "hf_secret"}, {"LEVEL": "3"}, {"name": "API_KEY", "value": "k"}]
    made = payload(post(alice_client, CREATE, {**custom, "variable": variables}))
    found = payload(post(alice_client, DETAIL, {"taskId": made["taskId"]}))
    assert found["variable"] == [{"HF_TOKEN": "***"}, {"LEVEL": "3"}, {"name": "API_KEY", "value": "***"}]


def test_the_same_key_creates_once(alice_client: APIClient, body: dict[str, Any]) -> None:
    key = {"HTTP_IDEMPOTENCY_KEY": "one"}
    first, second = (payload(post(alice_client, CREATE, body, **key)) for _ in range(2))
    assert first == second
    failure(post(alice_client, CREATE, {**body, "name": "other"}, **key), 409, "idempotency_mismatch")
    assert FineTuneTask.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_who_claim_a_name_at_once_one_is_refused(alice_user: User, body: dict[str, Any]) -> None:
    both_are_ready = threading.Barrier(2)

    def ask(_: int) -> Any:
        both_are_ready.wait()
        try:
            return post(client_of(alice_user), CREATE, body, **ENGLISH)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        one, other = sorted(pool.map(ask, range(2)), key=lambda response: response.status_code)
    payload(one)
    assert "Choose another name" in failure(other, 409, "already_exists", "name")
    assert FineTuneTask.objects.count() == 1


def test_the_database_refuses_a_claimed_name_that_the_look_did_not_find(
    alice_client: APIClient, body: dict[str, Any]
) -> None:
    payload(post(alice_client, CREATE, body))
    FineTuneTask.objects.update(name="not seen by the look")
    failure(post(alice_client, CREATE, body), 409, "already_exists", "name")
    assert FineTuneTask.objects.count() == 1


@pytest.fixture
def custom(alice_client: APIClient, alice: Actor, node: None) -> dict[str, Any]:
    """A request for Alice's own script, with all of its folders among her files."""
    for folder, name in (("code", "train.py"), ("data/train", "a.jsonl"), ("data/validate", "b.jsonl"),
                         ("data/test", "c.jsonl"), ("base", "config.json")):  # fmt: skip
        payload(alice_client.post("/api/file/file/uploadFolder", **form(name, b"{}", currentPath=f"/{folder}")))
    return {
        "name": "own code",
        "createWay": "custom",
        "command": "python train.py --model ${model_dir} --data ${input_dir} --out ${output_dir}",
        "workingDir": "/code",
        "inputType": "local",
        "inputDir": "/data",
        "originModelDir": "/base",
        "outputDir": "/result",
        "variable": [{"LEVEL": "3"}],
        "commonHyperParameters": [{"name": "learning_rate", "value": "1e-4"}],
        "fineTuneStrategy": "LoRA",
    }


def test_own_code_runs_with_its_folders_and_values(alice_client: APIClient, custom: dict[str, Any]) -> None:
    task = FineTuneTask.objects.get(pk=payload(post(alice_client, CREATE, custom))["taskId"])
    assert (task.create_way, task.method) == ("custom", "lora")
    assert task.own_code["code_folder"] == "private/code"
    assert (task.own_code["data_folder"], task.own_code["output_folder"]) == ("private/data", "private/result")
    assert task.hyperparameters == {"learning_rate": "1e-4"}
    found = payload(post(alice_client, DETAIL, {"taskId": str(task.pk)}))
    assert {name: found[name] for name in custom} == custom


def test_several_nodes_become_roles(alice_client: APIClient, custom: dict[str, Any]) -> None:
    nodes = [
        {"nodeType": "master", "numbers": 1, "cpuNumber": 1, "memory": 1},
        {"nodeType": "worker", "numbers": 2, "cpuNumber": 1, "memory": 1},
    ]
    response = post(alice_client, CREATE, {**custom, "resource": nodes, "priority": "5", "isUrgentTask": "YES"})
    if response.status_code == 422:  # this machine is too small for three containers
        assert response.json()["error"] == "unschedulable"
        return
    options = FineTuneTask.objects.get(pk=payload(response)["taskId"]).options
    assert [(role["name"], role["count"]) for role in options["roles"]] == [("master", 1), ("worker", 2)]
    assert (options["priority"], options["is_urgent"]) == (5, True)


@pytest.mark.parametrize(
    ("change", "status", "error", "field"),
    [
        ({"command": ""}, 400, "required", "command"),
        ({"command": "a\0b"}, 400, "bad_value", "command"),
        ({"command": "echo", "algorithmId": "sft"}, 400, "conflicting_fields", "command"),
        ({"algorithmId": "sft", "command": "", "image": "platform"}, 400, "conflicting_fields", "algorithmId"),
        ({"mpiCommand": "echo"}, 400, "conflicting_fields", "command"),
        ({"command": "", "commands": ["echo"], "mpiCommand": "echo"}, 400, "conflicting_fields", "commands"),
        ({"command": "", "commands": ["echo"], "algorithmId": "sft"}, 400, "conflicting_fields", "commands"),
        ({"datasetVersionId": "1"}, 400, "conflicting_fields", "inputType"),
        ({"inputType": "", "dataSetName": "faq"}, 400, "conflicting_fields", "inputType"),
        ({"inputType": "dataset"}, 400, "conflicting_fields", "inputType"),
        ({"inputType": "dataset", "inputDir": ""}, 400, "required", "datasetVersionId"),
        ({"modelVersion": "1"}, 400, "required", "modelId"),
        ({"fineTuneHyperParameters": [{"name": "learning_rate"}]}, 400, "duplicate_key", "fineTuneHyperParameters[0]"),
        ({"resourceType": "什么"}, 400, "not_a_choice", "resourceType"),
        ({"variable": [{"": "x"}]}, 400, "bad_name", "variable"),
        ({"variable": ["A=B"]}, 400, "wrong_type", "variable"),
        ({"inputDir": "/none"}, 404, "not_found", "inputDir"),
        ({"workingDir": "../../etc"}, 400, "path_outside_root", "workingDir"),
        ({"zoneName": "none"}, 404, "not_found", "zoneName"),
        ({"resourceGroupKey": "resourceGroupOBwEzW5u6RjazuzI"}, 404, "not_found", "resourceGroupKey"),
        ({"priority": "soon"}, 400, "wrong_type", "priority"),
        ({"commonHyperParameters": [{"name": "--output_dir=/etc", "value": "1"}]}, 400, "bad_name", None),
        ({"commonHyperParameters": [{"name": "output_dir", "value": "1"}]}, 400, "not_settable", None),
        ({"image": "nobody/none:1"}, 404, "not_found", "image"),
        ({"nodeName": ["none"]}, 422, "not_found", "nodeName"),
        ({"checkPointDir": "/c"}, 400, "required", "commonHyperParameters.save_strategy"),
        (
            {"resource": [{"nodeType": "worker"}, {"nodeType": "master", "numbers": 2}]},
            400,
            "out_of_range",
            "resource[1].numbers",
        ),
    ],
)
def test_what_is_wrong_with_own_code_is_named(
    alice_client: APIClient, custom: dict[str, Any], change: dict[str, Any], status: int, error: str, field: str | None
) -> None:
    failure(post(alice_client, CREATE, {**custom, **change}), status, error, field)
    assert FineTuneTask.objects.count() == 0


@pytest.mark.parametrize("name", ["outputDir", "workingDir", "originModelDir", "image"])
def test_a_recipe_refuses_what_only_own_code_has(alice_client: APIClient, body: dict[str, Any], name: str) -> None:
    failure(post(alice_client, CREATE, {**body, name: "/x"}), 422, "unprocessable", name)


@pytest.mark.parametrize(
    ("gpus", "error", "field"),
    [
        ({"gpuShare": "share", "gpuNum": 4}, "required", "gpuCores"),
        ({"gpuShare": "vgpu", "gpuCores": 50}, "required", "gpuMem"),
        ({"gpuShare": "share", "gpuCores": 50, "gpuMem": 8, "gpuNum": 4}, "conflicting_fields", "gpuNum"),
        ({"gpuShare": "share", "gpuCores": 50, "gpuMem": 8, "migRes": "1g.10gb"}, "conflicting_fields", "migRes"),
        ({"gpuShare": "mig", "gpuNum": 1}, "required", "migRes"),
        ({"gpuCores": 50}, "conflicting_fields", "gpuCores"),
    ],
)
def test_gpus_that_are_neither_whole_nor_shared_nor_sliced_are_refused(
    alice_client: APIClient, body: dict[str, Any], gpus: dict[str, Any], error: str, field: str
) -> None:
    body["resource"][0]["gpuResource"] = gpus
    failure(post(alice_client, CREATE, body), 400, error, f"resource[0].gpuResource.{field}")


def test_names_beside_ids_are_those_of_their_objects(alice_client: APIClient, body: dict[str, Any]) -> None:
    right = payload(post(alice_client, CREATE, {**body, "dataSetName": "faq", "modelVersion": "1"}))
    base = FineTuneTask.objects.get(pk=right["taskId"]).base_version
    assert base
    payload(post(alice_client, CREATE, {**body, "name": "again", "modelId": str(base.model_id)}))
    for field, wrong in (("dataSetName", "none"), ("modelVersion", "2"), ("modelId", body["modelVersionId"])):
        failure(post(alice_client, CREATE, {**body, "name": "c", field: wrong}), 400, "conflicting_fields", field)


def test_a_profile_gives_what_the_request_leaves_out(alice_client: APIClient, body: dict[str, Any]) -> None:
    profile = {
        "commonHyperParameters": [
            {"name": "learning_rate", "value": "9e-4", "description": "学习率"},
            {"name": "save_strategy", "value": "steps", "description": ""},
            {"name": "save_steps", "value": "200", "description": ""},
        ],
        "fineTuneHyperParameters": [{"name": "lora_alpha", "value": "16", "description": ""}],
        "fineTuneStrategy": "LoRA",
    }
    upload = form("config.json", json.dumps(profile).encode(), currentPath="config/LoRA")
    payload(alice_client.post("/api/file/file/uploadFolder", **upload))
    made = payload(post(alice_client, CREATE, {**body, "profilePath": "/config/LoRA/config.json"}))
    values = FineTuneTask.objects.get(pk=made["taskId"]).hyperparameters
    assert (values["learning_rate"], values["lora_alpha"], values["save_steps"]) == (1e-4, 16.0, 200)
    task = FineTuneTask.objects.get(pk=made["taskId"])
    task.submitted = {"dataSetName": "as written"}
    task.train_dataset = None
    found = detail_of(task)
    assert found["dataSetName"] == "as written"
    listed = {part: {entry["name"] for entry in found[part]} for part in (COMMON, FINE_TUNE)}
    assert "lora_alpha" in listed[FINE_TUNE] - listed[COMMON]
    assert "save_steps" in listed[COMMON] - listed[FINE_TUNE]


def test_data_and_models_are_also_found_by_name(alice_client: APIClient, body: dict[str, Any]) -> None:
    base = FineTuneTask.objects.get(pk=payload(post(alice_client, CREATE, body))["taskId"]).base_version
    assert base
    del body["modelVersionId"], body["datasetVersionId"]
    by_name = {**body, "name": "b", "dataSetName": "faq", "modelId": str(base.model_id), "modelVersion": "1"}
    task = FineTuneTask.objects.get(pk=payload(post(alice_client, CREATE, by_name))["taskId"])
    assert task.base_version == base
    failure(
        post(alice_client, CREATE, {**by_name, "name": "d", "dataSetName": "none"}), 404, "not_found", "dataSetName"
    )
    failure(post(alice_client, CREATE, {**body, "name": "c"}), 400, "required", "datasetVersionId")
