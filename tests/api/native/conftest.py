"""One of everything that Alice can own, for tests that look at it from outside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from clavier.files.models import ResumableUpload, StoredFile
from clavier.files.services import create_folder, upload_file
from clavier.files.uploads import create_upload
from clavier.images.models import ImageVersion
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import transition
from clavier.runs.states import EndReason, RunState
from datasets_app.models import DataPlugin, DatasetVersion, DataTask
from datasets_app.plugins import create_plugin
from datasets_app.services import create_dataset_with_file
from evaluation_app.models import EvaluationTask
from evaluation_app.services import create_evaluation_task
from finetune_app.models import FineTuneTask, HyperparameterSearch
from finetune_app.services import create_fine_tune_task
from inference_app.models import InferenceService
from inference_app.services import create_service
from models_app.models import ModelVersion, ObjectStore, RegisteredModel
from tests.worlds import make_image_version

QUESTIONS = "".join(json.dumps({"question": f"q{i}?", "answer": f"答{i}"}, ensure_ascii=False) + "\n" for i in range(5))


@dataclass
class World:
    """What Alice owns."""

    folder: StoredFile
    file: StoredFile
    upload: ResumableUpload
    dataset_version: DatasetVersion
    base: ModelVersion
    image: ImageVersion
    task: FineTuneTask
    evaluation: EvaluationTask
    service: InferenceService
    search: HyperparameterSearch
    store: ObjectStore
    plugin: DataPlugin
    data_task: DataTask

    @property
    def run(self) -> Run:
        """The task's run."""
        assert self.task.run
        return self.task.run


def make_dataset(actor: Actor, name: str = "faq", content: str = QUESTIONS) -> DatasetVersion:
    """A data set with one version."""
    upload = SimpleUploadedFile(f"{name}.jsonl", content.encode())
    return create_dataset_with_file(actor=actor, name=name, upload=upload, file_name=f"{name}.jsonl")


def make_model(actor: Actor, name: str = "base") -> ModelVersion:
    """A ready full model whose files lie on the disk."""
    model = RegisteredModel.objects.create(tenant_id=actor.tenant_id, created_by_id=actor.user_id, name=name)
    version = ModelVersion.objects.create(
        tenant_id=actor.tenant_id, created_by_id=actor.user_id, model=model, number=1, state="ready", source="path",
        folder=f"models/{name}",
    )  # fmt: skip
    version.path.mkdir(parents=True)
    (version.path / "config.json").write_text("{}")
    return version


def make_task(
    actor: Actor, base: ModelVersion, data: DatasetVersion, name: str = "tune", **options: Any
) -> FineTuneTask:
    """A task, started unless told otherwise."""
    return create_fine_tune_task(
        actor=actor, name=name, recipe="sft", method="lora", base_model=base.pk, train_dataset=data.pk, **options
    )


def make_search(actor: Actor) -> HyperparameterSearch:
    """A search that has ended; its tasks were deleted since."""
    return HyperparameterSearch.objects.create(
        tenant_id=actor.tenant_id, created_by_id=actor.user_id, name="search", task={}, space={}, num_trials=1,
        ended_at=timezone.now(),
    )  # fmt: skip


def make_data_task(actor: Actor, version: DatasetVersion) -> DataTask:
    """A count of tokens that has ended; its run was deleted since."""
    loss = {"max_length": 1024, "longer": 0, "lost_truncate": 0.0, "lost_drop": 0.0}
    return DataTask.objects.create(
        tenant_id=actor.tenant_id, created_by_id=actor.user_id, kind="tokens", dataset=version.dataset, version=version,
        state="done", result={"at": [loss]},
    )  # fmt: skip


def end(run: Run, state: RunState = RunState.FAILED, reason: EndReason = EndReason.EXIT_NONZERO) -> None:
    """Move a PENDING run to its end."""
    assert transition(run, state, reason=reason, message="It ended.")


def write(run: Run, name: str, content: bytes) -> None:
    """A file of the run folder, as the program leaves it."""
    path = run_folder(run.pk) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def error_of(response: Any) -> dict[str, Any]:
    """The error of an answer, in the one form there is."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) - {"problems"} == {"code", "message", "field", "request_id"}
    assert body["error"]["request_id"] == response["X-Request-Id"]
    found: dict[str, Any] = body["error"]
    return found


def names(client: APIClient, url: str, query: dict[str, str], field: str = "name") -> list[str]:
    """One field of each item of a list."""
    return [item[field] for item in client.get(url, query).json()["items"]]


@pytest.fixture
def world(alice: Actor, node: None) -> World:
    """One of everything."""
    data, base = make_dataset(alice), make_model(alice)
    return World(
        folder=create_folder(actor=alice, area="private", folder="", name="data"),
        file=upload_file(
            actor=alice, area="private", folder="data", name="训练.txt", upload=SimpleUploadedFile("x", b"0123456789")
        ),
        upload=create_upload(actor=alice, size_bytes=5, area="private", folder="data", name="part.bin"),
        dataset_version=data,
        base=base,
        image=make_image_version(alice),
        task=make_task(alice, base, data, config="task_type: lora\n"),
        evaluation=create_evaluation_task(actor=alice, name="judge", model_version=base.pk, dataset_version=data.pk),
        service=create_service(actor=alice, name="faq", model_version=base.pk),
        search=make_search(alice),
        store=ObjectStore.objects.create(
            tenant_id=alice.tenant_id,
            created_by_id=alice.user_id,
            name="store",
            endpoint_url="https://s3.example",
            access_key="key",
            sealed_secret="sealed",
        ),
        plugin=create_plugin(actor=alice, name="maker", version="1", command="true"),
        data_task=make_data_task(alice, data),
    )


@pytest.fixture
def bobs_key(bob_client: APIClient) -> str:
    """Id of an API key of Bob's."""
    found: str = bob_client.get("/api/v1/api-keys").json()["items"][0]["id"]
    return found
