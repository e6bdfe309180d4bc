"""Browsers of Alice (owner), Bob (member), Vera (viewer), Charlie (stranger), and one of everything of Alice's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from clavier.accounts.models import User
from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.files.models import StoredFile
from clavier.files.services import upload_file
from clavier.images.models import ImageVersion
from clavier.quotas.models import Node
from clavier.quotas.services import ensure_local_node
from clavier.runs.admission import begin_attempt
from clavier.runs.models import Attempt, Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import finish_attempt, mark_running
from clavier.runs.states import EndReason
from datasets_app.models import DataPlugin, DatasetVersion, DataTask
from datasets_app.overlaps import measure_overlap
from datasets_app.plugins import create_plugin
from evaluation_app.models import EvaluationTask
from evaluation_app.services import create_evaluation_task
from finetune_app.models import FineTuneTask
from finetune_app.services import create_fine_tune_task
from inference_app.models import InferenceService
from inference_app.services import create_service
from models_app.models import ModelVersion
from tests.worlds import make_dataset, make_image_version, make_model_version, output_of

LOG = "INFO  device: CPU\nWARN  one sample was truncated\nINFO  step 1/4 | loss 2.0\n"
METRICS = [
    {"t": 1.0, "kind": "phase", "name": "train", "message": "training started"},
    {"t": 2.0, "kind": "progress", "step": 1, "total_steps": 4},
    {"t": 2.0, "kind": "metric", "step": 1, "total_steps": 4, "epoch": 0.25, "train/loss": 2.0},
    {"t": 4.0, "kind": "progress", "step": 2, "total_steps": 4, "eta_s": 75.0},
    {"t": 4.0, "kind": "metric", "step": 2, "total_steps": 4, "epoch": 0.5, "train/loss": 1.5, "eval/loss": 1.625},
]


@pytest.fixture(autouse=True)
def _plain(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Static files as they lie, no queue, plenty of room on the node."""
    settings.STATIC_ROOT = tmp_path
    backend = "django.contrib.staticfiles.storage.StaticFilesStorage"
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": backend}}
    settings.CLAVIER_EXECUTOR = "fake"
    settings.LOCAL_NODE_CPU_MILLI = 32_000
    settings.LOCAL_NODE_MEMORY_MIB = 128 * 1024
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: False)


def browser_of(user: User) -> Client:
    """A signed-in browser that does not send what a page of another site could make it send."""
    client = Client(raise_request_exception=False)
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


@pytest.fixture
def anonymous(db: None) -> Client:
    """Nobody."""
    return Client(raise_request_exception=False)


@pytest.fixture
def alice_browser(alice_user: User) -> Client:
    """Owner of tenant one."""
    return browser_of(alice_user)


@pytest.fixture
def bob_browser(bob_user: User) -> Client:
    """Member of tenant one."""
    return browser_of(bob_user)


@pytest.fixture
def vera_browser(alice_user: User) -> Client:
    """Viewer of tenant one."""
    return browser_of(create_user(username="vera", tenant_name="one", password="vera-secret-4", role="viewer")[0])


@pytest.fixture
def charlie_browser(charlie_user: User) -> Client:
    """Stranger: owner of tenant two."""
    return browser_of(charlie_user)


@dataclass
class World:
    """What Alice owns: a finished, a running and a waiting task, a judged version, a service that answers."""

    data: DatasetVersion
    base: ModelVersion
    done: FineTuneTask
    live: FineTuneTask
    waiting: FineTuneTask
    tuned: ModelVersion
    evaluation: EvaluationTask
    service: InferenceService
    replica: Run
    file: StoredFile
    image: ImageVersion
    plugin: DataPlugin
    data_task: DataTask


@pytest.fixture
def node(db: None) -> Node:
    """Where runs start."""
    return ensure_local_node()


@pytest.fixture
def world(alice: Actor, spooled: Any, node: Node) -> World:
    """One of everything."""
    data, base = make_dataset(alice, spooled), make_model_version(alice, num_parameters=685_696, size_bytes=2_742_784)
    names, config = ("tune-done", "tune-live", "tune-waiting"), "task_type: lora\n"
    done, live, waiting = (make_task(alice, base, data, name, config=config) for name in names)
    facts = {"format": "adapter", "architecture": "Qwen2ForCausalLM", "num_parameters": 1000, "size_bytes": 4000}
    complete(begin(done.run, node), output_of(facts) | {"log.txt": LOG, "metrics.jsonl": lines(METRICS)})
    leave(begin(live.run, node), {"log.txt": LOG, "metrics.jsonl": lines(METRICS)})
    tuned = ModelVersion.objects.get(run=done.run)
    service = create_service(actor=alice, name="faq-bot", model_version=tuned.pk)
    replica = Run.objects.get(kind="replica")
    ready = {"engine": "xllamacpp", "served_name": "faq-bot", "api_key": "k", "endpoint": {"unix": "/x"}}
    leave(begin(replica, node), {"log.txt": "INFO  ready\n", "work/ready.json": json.dumps(ready)})
    file = upload_file(actor=alice, area="private", folder="", name="笔记.txt", upload=spooled(b"0123456789"))
    evaluation, image = judged(alice, tuned, data, node), make_image_version(alice)
    plugin = create_plugin(actor=alice, name="maker", version="1", command="true")
    data_task = measure_overlap(actor=alice, version=data)
    return World(data, base, done, live, waiting, tuned, evaluation, service, replica, file, image, plugin, data_task)


def make_task(actor: Actor, base: ModelVersion, data: DatasetVersion, name: str, **options: Any) -> FineTuneTask:
    """A LoRA fine-tune, started unless told otherwise."""
    return create_fine_tune_task(
        actor=actor, name=name, recipe="sft", method="lora", base_model=base.pk, train_dataset=data.pk, **options
    )


def judged(actor: Actor, version: ModelVersion, data: DatasetVersion, node: Node) -> EvaluationTask:
    """A finished evaluation: the base knows nothing, the tuned version all but the last answer."""
    task = create_evaluation_task(actor=actor, name="faq-judge", model_version=version.pk, dataset_version=data.pk)
    samples = [
        {
            "index": n,
            "question": f"How many is {n}?",
            "reference": f"It is {n}.",
            "answers": {
                "base": {"text": "hm", "exact_match": 0.0},
                "tuned": {"text": f"It is {n}." if n < 4 else "no idea", "exact_match": float(n < 4)},
            },
        }
        for n in range(5)
    ]
    scores = {
        "num_samples": 5,
        "scores": {"base": {"exact_match": 0.0}, "tuned": {"exact_match": 0.8}},
        "intervals": {"base": {"exact_match": [0.0, 0.0]}, "tuned": {"exact_match": [0.4, 1.0]}},
        "fingerprint": "f",
    }
    files = {"scores.json": json.dumps(scores), "samples.jsonl": lines(samples)}
    complete(begin(task.run, node), output_of({}, **files))
    return task


def begin(run: Run | None, node: Node) -> Attempt:
    """Let a waiting run start."""
    assert run is not None
    attempt = begin_attempt(run=Run.objects.get(pk=run.pk), nodes=[node])
    assert isinstance(attempt, Attempt), attempt
    mark_running(attempt=attempt, started_at=timezone.now())
    return attempt


def leave(attempt: Attempt, files: dict[str, str]) -> None:
    """What the program has written so far."""
    for path, text in files.items():
        target = run_folder(attempt.run_id) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def complete(attempt: Attempt, files: dict[str, str]) -> None:
    """The program has ended well."""
    leave(attempt, files)
    assert finish_attempt(attempt=attempt, reason=EndReason.COMPLETED, message="Completed.", exit_code=0)


def lines(events: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
