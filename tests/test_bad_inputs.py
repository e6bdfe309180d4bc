"""Every case of the catalogue of bad inputs that is due: refused in words, with nothing left behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.files.services import create_folder, upload_file
from clavier.images.models import ContainerImage, ImageVersion
from clavier.images.services import register_image
from clavier.quotas.services import audit_usage, ensure_local_node
from finetune_app.services import create_fine_tune_task
from inference_app.services import create_service
from tests.api.conftest import client_of
from tests.api.native.conftest import make_dataset, make_model
from tests.cases import (  # noqa: F401  (they register)
    api_fields,
    archives,
    auth,
    configs,
    datasets,
    env_and_commands,
    files,
    front,
    images,
    models,
    names,
    not_due,
    own_code,
    pagination,
    quota,
    resumable_uploads,
)
from tests.cases.registry import DECIDED_OTHERWISE, IMPLEMENTED, Later, Scene, catalogue
from tests.conftest import left_behind
from tests.engine import make_real_engine

CATALOGUE = catalogue()
DUE = [case for case in CATALOGUE if case["area"] not in not_due.AREAS and case["id"] not in not_due.CASES]
#: Rows that a refused request may leave: the log of what happened, and the session of a sign-in that was tried.
NOTED = {"auditlog", "axes", "sessions"}
#: For one request on a machine that does other things too; 10,001 parts are 10,001 files on the disk, before a request
#: on a raw socket a server starts, and a line of 64 MiB is read whole.
SECONDS = {"FILE-022": 110.0, "FILE-023": 110.0, "FILE-024": 60.0, "DATA-005": 60.0}
USUAL_SECONDS = 10.0


@pytest.fixture
def scene(alice: Actor, alice_user: User, charlie: Actor, charlie_user: User, monkeypatch: Any, home: Path) -> Scene:
    """Alice with all that a good request needs, and a stranger with one of everything."""
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: False)
    ensure_local_node()
    base, data, theirs, foreign = (
        make_model(alice),
        make_dataset(alice),
        make_dataset(charlie),
        make_model(charlie, "b"),
    )
    for folder in ("code", "data", "base"):
        create_folder(actor=alice, area="private", folder="", name=folder)
    upload_file(actor=alice, area="private", folder="", name="there.txt", upload=SimpleUploadedFile("x", b"x"))
    register_image(actor=alice, name="mine")
    secret = register_image(actor=charlie, name="secret/image")
    shared = {"recipe": "sft", "method": "lora"}
    make_dataset(alice, "caf\u00e9")
    create_fine_tune_task(actor=alice, name="there", base_model=base.pk, train_dataset=data.pk, **shared)
    create_fine_tune_task(actor=charlie, name="theirs", base_model=foreign.pk, train_dataset=theirs.pk, **shared)
    create_service(actor=alice, name="live", model_version=make_model(alice, "served").pk)
    operator, _ = create_user(username="olga", tenant_name="operators", password="olga-secret-55", is_operator=True)
    return Scene(
        alice=alice,
        client=client_of(alice_user),
        anonymous=APIClient(),
        operator=client_of(operator),
        victim=charlie_user,
        victims={
            "model_version": str(foreign.pk), "image": ready(secret), "own_model": str(base.model_id),
            "task_name": "theirs",
        },
        bodies=bodies(str(base.pk), str(data.pk)),
        engine=lambda: make_real_engine(monkeypatch, home),
    )  # fmt: skip


def ready(image: ContainerImage) -> str:
    """``name:tag`` of an image with content."""
    owner = {"tenant": image.tenant, "created_by": image.created_by}
    ImageVersion.objects.create(
        image=image, tag="1", state="ready", content_id="sha256:" + "0" * 64, source="tar", **owner
    )
    return f"{image.name}:1"


def bodies(model_version: str, data: str) -> dict[str, dict[str, Any]]:
    """Requests that succeed."""
    return {
        "/kernel/fineTune/createLlmFineTuneTask": {
            "name": "good", "fineTuneStrategy": "LoRA", "modelVersionId": model_version, "datasetVersionId": data,
        },
        "/model/evaluation/task/create": {
            "name": "good", "image": "platform", "command": "true", "outputDir": "/out",
            "resource": {"cpuNumber": 1, "memory": 1},
        },
        "/model/aiApplication/createAiApplication": {
            "application": {"name": "good", "type": "LLM"},
            "aiApplicationVersionList": [{"version": "0.0.1", "source": 3, "saveType": 2, "savePath": "/base"}],
        },
        "/model/modelServer/createModelInferenceServer": {
            "modelServer": {"name": "good"},
            "modelServerVersions": [{"aiApplicationVersionId": model_version, "rate": 100, "cpu": 1, "memory": 1}],
        },
    }  # fmt: skip


def rows() -> dict[str, int]:
    """How many rows each table has."""
    return {
        model._meta.label: model._base_manager.count()
        for model in apps.get_models()
        if model._meta.managed and model._meta.app_label not in NOTED
    }


def code_of(body: dict[str, Any]) -> str | None:
    """The machine word, where the dialect has it."""
    error = body.get("error")
    return error["code"] if isinstance(error, dict) else error


def message_of(body: dict[str, Any]) -> str:
    """The sentence, where the dialect has it."""
    error = body.get("error")
    return str(error["message"] if isinstance(error, dict) else body.get("message", ""))


def agrees(expect: dict[str, Any], code: str | None, message: str) -> None:
    """The word and the parts of the sentence are the catalogue's."""
    assert code == expect["error"], message
    for part in expect["message_contains"]:
        assert part in message


def with_database(case: dict[str, Any]) -> Any:
    """Servers, and processes that are killed, have connections of their own: for them all must be committed."""
    is_of_servers = case["id"] in ("AUTH-003", "FILE-022", "FILE-023", "UPL-010", "UPL-013")
    return pytest.param(case, id=case["id"], marks=pytest.mark.django_db(transaction=is_of_servers))


def test_every_case_is_implemented_or_named_as_not_due() -> None:
    assert [case["id"] for case in DUE if case["id"] not in IMPLEMENTED] == []
    assert sorted(set(IMPLEMENTED) - {case["id"] for case in DUE}) == []
    assert set(not_due.AREAS) <= {case["area"] for case in CATALOGUE}


@pytest.mark.parametrize("case", [with_database(case) for case in DUE])
def test_bad_input(case: dict[str, Any], scene: Scene, home: Path) -> None:
    expect, is_refused = (
        case["expect"],
        case["invariant"] == "default_on_reject" and case["id"] not in DECIDED_OTHERWISE,
    )
    before, tree = rows(), left_behind(home)
    began = time.monotonic()
    answers = IMPLEMENTED[case["id"]](scene)
    took = time.monotonic() - began
    for response in answers if isinstance(answers, list) else [answers]:
        if isinstance(response, Later):
            agrees(expect, response.code, response.message)
            continue
        body = response.json()
        allowed = expect["status"] if isinstance(expect["status"], list) else [expect["status"]]
        assert response.status_code in allowed, body
        agrees(expect, code_of(body), message_of(body))
        text = response.content.decode()
        assert str(home) not in text
        assert "Traceback" not in text
        assert not is_refused or response["X-Request-Id"] in text
    if is_refused and case["id"] not in ("AUTH-003", "AUTH-025", "AUTH-027", "PAGE-011"):
        assert rows() == before
        assert left_behind(home) == tree
        assert took < SECONDS.get(case["id"], USUAL_SECONDS)
    assert audit_usage() == []
