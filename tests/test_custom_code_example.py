"""examples/custom_code, as a user runs it: upload, tune, register, judge, through the native API and real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.files.models import StoredFile
from clavier.files.services import upload_files
from clavier.runs.models import Run
from finetune_app.models import FineTuneTask
from models_app.models import ModelVersion
from tests.api.conftest import client_of
from tests.conftest import actor_of
from tests.engine import RealEngine, make_real_engine
from tests.programs.tiny_models import write_tiny_model

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "custom_code"
LIMIT_S = 240.0


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, home: Path) -> RealEngine:
    """Processes of this machine."""
    return make_real_engine(monkeypatch, home)


@pytest.fixture
def client(alice_user: User, tmp_path: Path) -> APIClient:
    """Alice, who has uploaded the example and a tiny model."""
    model = write_tiny_model(tmp_path / "model", "qwen2")
    places = [(EXAMPLE, path) for path in sorted(EXAMPLE.rglob("*.*")) if "__pycache__" not in path.parts]
    places += [(tmp_path, path) for path in sorted(model.iterdir())]
    uploads = [(str(path.relative_to(root)), SimpleUploadedFile(path.name, path.read_bytes())) for root, path in places]
    upload_files(actor=actor_of(alice_user), area="private", folder="", uploads=uploads)
    return client_of(alice_user)


def tune(client: APIClient, **changes: Any) -> dict[str, Any]:
    """The task as it was created."""
    body = {
        "name": "my-lora",
        "command": "python train.py --model_dir ${model_dir} --input_dir ${input_dir} --output_dir ${output_dir} "
        "--checkpoint_dir ${checkpoint_dir}",
        "code_folder": "private/code", "data_folder": "private/data", "model_folder": "private/model",
        "profile_path": "private/config/LoRA/config.json", "output_folder": "private/out/lora",
        "checkpoint_folder": "private/checkpoints/lora", "environment": {"OMP_NUM_THREADS": "1"},
        "resources": {"cpu_milli": 1000, "memory_mib": 4096}, **changes,
    }  # fmt: skip
    response = client.post("/api/v1/fine-tune-tasks/custom", body, "json")
    assert response.status_code == 201, response.json()
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.timeout(900)
def test_a_script_of_ones_own_trains_shows_its_loss_and_becomes_a_model(client: APIClient, engine: RealEngine) -> None:
    task = tune(client)
    run = engine.finish(FineTuneTask.objects.get(pk=task["id"]).run, LIMIT_S)  # type: ignore[arg-type]
    log = client.get(f"/api/v1/fine-tune-tasks/{task['id']}/log", {"limit": 100_000}).json()["text"]
    assert run.state == "COMPLETED", (run.message, log)
    events = client.get(f"/api/v1/fine-tune-tasks/{task['id']}/metrics").json()["items"]
    losses = [event["train/loss"] for event in events if "train/loss" in event]
    assert len(losses) == 6  # 3 batches of 2, twice
    assert any("eval/loss" in event for event in events)
    status = client.get(f"/api/v1/fine-tune-tasks/{task['id']}/status").json()
    assert status["progress"]["progress"]["total_steps"] == 6
    paths = set(StoredFile.objects.values_list("path", flat=True))
    assert {"out/lora/model/adapter_model.safetensors", "checkpoints/lora/checkpoint-3/adapter_config.json"} <= paths

    made = client.post(f"/api/v1/fine-tune-tasks/{task['id']}/model", {"name": "mine"}, "json")
    assert made.status_code == 201, made.json()
    version = ModelVersion.objects.get(pk=made.json()["id"])
    engine.finish(version.run, LIMIT_S)  # type: ignore[arg-type]
    version.refresh_from_db()
    assert (version.state, version.format, version.source) == ("ready", "adapter", "fine_tune"), version.message


@pytest.mark.timeout(900)
def test_a_program_of_ones_own_judges(client: APIClient, engine: RealEngine) -> None:
    body = {
        "name": "perplexity", "command": "python evaluate.py ${model_dir} ${input_dir} ${output_dir}",
        "code_folder": "private/code", "data_folder": "private/data", "model_folder": "private/model",
        "environment": {"OMP_NUM_THREADS": "1"},
    }  # fmt: skip
    made = client.post("/api/v1/evaluation-tasks/custom", body, "json")
    assert made.status_code == 201, made.json()
    run = engine.finish(Run.objects.get(subject_id=made.json()["id"]), LIMIT_S)
    found = client.get(f"/api/v1/evaluation-tasks/{made.json()['id']}").json()
    assert run.state == "COMPLETED", run.message
    assert set(found["results"]["metrics"]) == {"loss", "perplexity", "texts"}
