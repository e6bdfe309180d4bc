"""3. Models: list, detail, versions, one version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from clavier.runs.outputs import run_folder
from finetune_app.custom import create_custom_fine_tune_task
from finetune_app.services import access_fine_tune_task
from models_app.models import ModelVersion
from models_app.object_stores import create_object_store
from tests.api.legacy.conftest import failure, form, payload
from tests.api.native.conftest import make_model
from tests.engine import make_engine, make_real_engine
from tests.object_stores import SECRET, fill, s3_server
from tests.programs.tiny_models import write_tiny_model

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
    assert (found["parameterStatus"], found["message"], found["deployJson"]) == (2, "", "")
    assert str(version.path) not in json.dumps(found)


def test_a_failed_import_tells_why(alice_client: APIClient, version: ModelVersion) -> None:
    version.state, version.message = "failed", "private/x is gone from the disk."
    version.save()
    found = payload(alice_client.get(VERSION, {"aiApplicationVersionId": str(version.pk)}))
    assert (found["status"], found["parameterStatus"]) == (3, 0)
    assert "在磁盘上已不存在" in found["message"]


def test_the_deploy_json_of_a_model_is_shown_unless_it_is_a_link(
    alice_client: APIClient, version: ModelVersion, tmp_path: Path
) -> None:
    def shown() -> str:
        return str(payload(alice_client.get(VERSION, {"aiApplicationVersionId": str(version.pk)}))["deployJson"])

    file, secret = version.path / "deploy.json", tmp_path / "secret"
    file.write_text('{"engine": "vllm"}')
    assert shown() == '{"engine": "vllm"}'
    for data in (b"\xff", b" " * 65_537):
        file.write_bytes(data)
        assert shown() == ""
    secret.write_text("secret")
    file.unlink()
    file.symlink_to(secret)
    assert shown() == ""


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


CREATE = "/model/aiApplication/createAiApplication"


@pytest.fixture
def body(alice_client: APIClient, node: None) -> dict[str, Any]:
    """The document's own request, with a folder among Alice's files."""
    payload(alice_client.post("/api/file/file/uploadFolder", **form("config.json", b"{}", currentPath="/lightgbm")))
    return {
        "application": {
            "name": "11", "createUser": "alice", "description": "d", "userName": "zjm", "type": "LLM",
            "developer": "厂商", "loginUser": 1,
        },
        "aiApplicationVersionList": [
            {
                "applicationName": "11", "createUser": "alice", "userName": "zjm", "description": "v",
                "version": "0.0.1", "source": "3", "trainTaskVersionId": "", "llmFineTuneTaskId": "", "image": "",
                "imageType": "", "framework": 12, "saveType": 2, "savePath": "/lightgbm",
                "configSaveType": 2, "label": "l", "scale": "7B", "modelStructure": "s", "loginUser": 1,
            },
        ],
        "hyperParameterList": [
            {"paramName": "top_p", "type": "float", "value": "0.9", "valueRange": [0, 1], "edit": "true"}
        ],
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_model_is_created_with_its_versions(alice_client: APIClient, body: dict[str, Any], prefix: str) -> None:
    made = payload(alice_client.post(prefix + CREATE, body, format="json"))
    application, (version,) = made["application"], made["aiApplicationVersionList"]
    assert (application["name"], application["developer"], application["type"]) == ("11", "厂商", "LLM")
    assert (version["applicationId"], version["status"], version["source"]) == (application["id"], 1, 3)
    same = ("version", "framework", "saveType", "savePath", "configSaveType", "label", "scale", "modelStructure")
    written = body["aiApplicationVersionList"][0]
    assert {name: version[name] for name in same} == {name: written[name] for name in same}
    assert made["hyperParameterList"] == [
        {"paramName": "top_p", "type": "float", "value": "0.9", "valueRange": [0, 1], "edit": True}
    ]
    found = payload(alice_client.get(VERSION, {"aiApplicationVersionId": version["id"]}))
    assert found == version


def test_a_model_and_its_versions_are_made_all_or_none(alice_client: APIClient, body: dict[str, Any]) -> None:
    body["aiApplicationVersionList"].append({"savePath": "/none"})
    response = alice_client.post(CREATE, body, format="json")
    failure(response, 404, "not_found", "aiApplicationVersionList[1].savePath")
    assert names(alice_client) == []
    del body["aiApplicationVersionList"][1]
    payload(alice_client.post(CREATE, body, format="json"))
    failure(alice_client.post(CREATE, body, format="json"), 409, "already_exists", "application.name")


@pytest.mark.parametrize("others", [("0.0.1", "0.0.1"), ("2", "")])
def test_two_versions_of_a_model_have_two_names(
    alice_client: APIClient, body: dict[str, Any], others: tuple[str, str]
) -> None:
    (first,) = body["aiApplicationVersionList"]
    body["aiApplicationVersionList"] = [{**first, "version": name} for name in others]
    response = alice_client.post(CREATE, body, format="json")
    failure(response, 409, "already_exists", "aiApplicationVersionList[1].version")


def test_a_result_of_training_becomes_a_version_without_a_copy(
    alice_client: APIClient, alice: Actor, version: ModelVersion, body: dict[str, Any]
) -> None:
    wanted = {"source": 1, "trainTaskVersionId": str(version.pk), "version": "v1"}
    made = payload(alice_client.post(CREATE, {**body, "aiApplicationVersionList": [wanted]}, format="json"))
    (found,) = made["aiApplicationVersionList"]
    assert (found["source"], found["status"], found["size"]) == (1, 2, 2.0)
    shared = ModelVersion.objects.get(pk=found["id"])
    assert (shared.path, shared.shares_files_with) == (version.path, version)
    assert [(one["name"], one["range"]) for one in shared.declarations] == [("top_p", [0, 1])]
    in_use = alice_client.delete(f"/api/v1/model-versions/{version.pk}")
    assert (in_use.status_code, in_use.json()["error"]["code"]) == (409, "in_use")


def test_the_output_of_own_code_is_imported_and_names_its_task(
    alice_client: APIClient,
    charlie_client: APIClient,
    alice: Actor,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    engine = make_engine(monkeypatch)
    engine.will(files={"output/final/config.json": "{}", "output/final/model.safetensors": "not read here"})
    task = create_custom_fine_tune_task(actor=alice, name="mine", command="x")
    body["application"]["createUser"] = ""
    body["aiApplicationVersionList"] = [{"source": 1, "llmFineTuneTaskId": str(task.pk), "version": "v1"}]
    place = "aiApplicationVersionList[0].llmFineTuneTaskId"
    early = alice_client.post(CREATE, body, format="json")
    failure(early, 409, "not_ready", place)
    engine.step(2)
    failure(charlie_client.post(CREATE, body, format="json"), 404, "not_found", place)
    (found,) = payload(alice_client.post(CREATE, body, format="json"))["aiApplicationVersionList"]
    assert (found["source"], found["status"], found["llmFineTuneTaskId"]) == (1, 1, str(task.pk))
    version = ModelVersion.objects.get(pk=found["id"])
    ModelVersion.objects.filter(pk=version.pk).update(submitted={})
    shown = payload(alice_client.get(VERSION, {"aiApplicationVersionId": found["id"]}))
    assert shown["llmFineTuneTaskId"] == str(task.pk)
    run_id = access_fine_tune_task(alice, task.pk).run_id
    assert version.run.run_spec().parameters["location"] == str(run_folder(run_id) / "output" / "final")


@pytest.mark.django_db(transaction=True)
def test_a_model_in_an_object_store_is_imported_for_its_tenant_only(
    alice_client: APIClient,
    charlie_client: APIClient,
    alice: Actor,
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    tmp_path: Path,
    settings: Any,
) -> None:
    engine = make_real_engine(monkeypatch, home)
    place = "s3://lake/models/team/qwen"
    version = {"source": 3, "saveType": 1, "savePath": place, "configSaveType": 1, "configPath": f"{place}/config.json"}
    body = {"application": {"name": "from-s3"}, "aiApplicationVersionList": [version]}
    with s3_server() as (endpoint, host):
        settings.OBJECT_STORE_HOSTS = [host]
        fill(endpoint, write_tiny_model(tmp_path / "tiny", "qwen2"), "team/qwen")
        create_object_store(actor=alice, name="lake", endpoint_url=endpoint, access_key="key", secret_key=SECRET)
        refused = charlie_client.post(CREATE, body, format="json")
        failure(refused, 400, "bad_value", "aiApplicationVersionList[0].configPath")
        (made,) = payload(alice_client.post(CREATE, body, format="json"))["aiApplicationVersionList"]
        assert (made["status"], made["saveType"], made["savePath"], made["configSaveType"]) == (1, 1, place, 1)
        run = engine.finish(ModelVersion.objects.get(pk=made["id"]).run, 120)
    assert run.state == "COMPLETED", run.message
    found = payload(alice_client.get(VERSION, {"aiApplicationVersionId": made["id"]}))
    assert found["status"] == 2
    assert found["size"] > 0
    assert SECRET not in json.dumps(found)


def test_own_code_that_left_no_model_is_told_what_a_model_is(
    alice_client: APIClient, alice: Actor, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    engine = make_engine(monkeypatch)
    engine.will(files={"output/log.txt": "x"})
    task = create_custom_fine_tune_task(actor=alice, name="mine", command="x")
    engine.step(2)
    body["aiApplicationVersionList"] = [{"source": 1, "llmFineTuneTaskId": str(task.pk)}]
    response = alice_client.post(CREATE, body, format="json")
    message = failure(response, 400, "missing_file", "aiApplicationVersionList[0].llmFineTuneTaskId")
    assert "safetensors" in message
    assert names(alice_client) == []


@pytest.mark.parametrize(
    ("change", "status", "error", "field"),
    [
        ({"savePath": ""}, 400, "required", "savePath"),
        ({"savePath": "../../etc"}, 400, "path_outside_root", "savePath"),
        ({"configPath": "/etc/passwd"}, 400, "path_outside_root", "configPath"),
        ({"saveType": 1, "savePath": "/none/bucket/qwen"}, 400, "bad_value", "savePath"),
        ({"saveType": 1, "savePath": "s3://none/bucket/qwen"}, 400, "bad_value", "savePath"),
        ({"saveType": 1, "savePath": "s3://"}, 400, "required", "savePath"),
        ({"configSaveType": 1, "configPath": "s3://none/bucket/config"}, 400, "bad_value", "configPath"),
        ({"configPath": "/none.json"}, 404, "not_found", "configPath"),
        ({"applicationName": "OTHER"}, 400, "conflicting_fields", "applicationName"),
        ({"llmFineTuneTaskId": "1"}, 400, "conflicting_fields", "llmFineTuneTaskId"),
        ({"source": 2, "trainTaskVersionId": "1"}, 400, "conflicting_fields", "trainTaskVersionId"),
        ({"source": 1, "trainTaskVersionId": "1", "llmFineTuneTaskId": "2"}, 400, "conflicting_fields",
         "trainTaskVersionId"),
        ({"source": 2}, 400, "required", "image"),
        ({"source": 2, "image": "platform"}, 400, "required", "image"),
        ({"source": 2, "image": "none:1"}, 404, "not_found", "image"),
        ({"source": 1}, 400, "required", "llmFineTuneTaskId"),
        ({"source": 1, "llmFineTuneTaskId": "1"}, 404, "not_found", "llmFineTuneTaskId"),
        ({"source": 4}, 400, "out_of_range", "source"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_version_is_named(
    alice_client: APIClient, body: dict[str, Any], change: dict[str, Any], status: int, error: str, field: str
) -> None:
    body["aiApplicationVersionList"][0] |= change
    response = alice_client.post(CREATE, body, format="json")
    failure(response, status, error, f"aiApplicationVersionList[0].{field}")


def test_a_login_user_of_0_and_anothers_name_grant_nothing(
    charlie_client: APIClient, alice_user: User, version: ModelVersion, body: dict[str, Any]
) -> None:
    body["application"] |= {"createUser": "", "loginUser": 0}
    body["aiApplicationVersionList"] = [{"source": 1, "trainTaskVersionId": str(version.pk), "loginUser": 0}]
    response = charlie_client.post(CREATE, body, format="json")
    failure(response, 404, "not_found", "aiApplicationVersionList[0].trainTaskVersionId")
    body["aiApplicationVersionList"] = [{"createUser": str(alice_user.pk)}]
    response = charlie_client.post(CREATE, body, format="json")
    failure(response, 403, "identity_mismatch", "aiApplicationVersionList[0].createUser")
    assert names(charlie_client) == []
