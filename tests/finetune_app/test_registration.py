"""What a task made becomes a model version."""

from __future__ import annotations

import json

import pytest

from clavier.core.errors import Conflict, Invalid, InvalidFields, NotFound
from clavier.runs.outputs import run_folder
from finetune_app.custom import create_custom_fine_tune_task
from finetune_app.registration import register_task_output
from finetune_app.services import access_fine_tune_task
from inference_app.services import create_service
from models_app.models import ModelVersion
from models_app.services import register_model
from tests.engine import make_engine
from tests.worlds import make_image_version, make_model_version, output_of

pytestmark = pytest.mark.django_db(transaction=True)

ADAPTER = {
    "output/final/adapter_config.json": json.dumps({"peft_type": "LORA", "r": 8}),
    "output/final/adapter_model.safetensors": "not read in this test",
    "output/final/deeper/config.json": "{}",
    "output/log.txt": "x",
}


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files=ADAPTER)
    return made


@pytest.fixture
def task(engine, alice):
    """A completed task of own code on a base of Alice's."""
    base = make_model_version(alice)
    made = create_custom_fine_tune_task(actor=alice, name="mine", command="x ${model_dir}", base_model=base.pk)
    engine.step(2)
    return access_fine_tune_task(alice, made.pk)


def test_the_folder_with_config_and_weights_is_imported_with_its_lineage(engine, task, alice):
    version = register_task_output(
        actor=alice, task=task, name="tuned", declarations=[{"name": "top_k", "type": "int", "value": 3}]
    )
    parameters = version.run.run_spec().parameters
    assert parameters["location"] == str(run_folder(task.run_id) / "output" / "final")
    assert parameters["base_model"] == str(task.base_version.path)
    engine.will(files=output_of({"format": "adapter", "architecture": "LORA", "render_hash": "r", "fingerprint": "f"}))
    engine.step(2)
    version.refresh_from_db()
    assert (version.state, version.format, version.source, version.location) == (
        "ready", "adapter", "fine_tune", str(task.pk),
    )  # fmt: skip
    assert version.base_version == task.base_version
    assert version.declarations[0]["name"] == "top_k"


def test_an_output_without_a_model_is_refused(engine, task, alice):
    with pytest.raises(Invalid, match=r"config\.json or adapter_config\.json") as refusal:
        register_task_output(actor=alice, task=task, name="tuned", subfolder="final/deeper")
    assert refusal.value.code == "missing_file"
    with pytest.raises(Invalid) as refusal:
        register_task_output(actor=alice, task=task, name="tuned", subfolder="../../etc")
    assert refusal.value.code == "path_outside_root"


def test_only_a_completed_task_can_be_registered_and_only_by_its_tenant(engine, task, alice, charlie):
    saved = create_custom_fine_tune_task(actor=alice, name="later", command="x", start=False)
    with pytest.raises(Conflict, match="not started"):
        register_task_output(actor=alice, task=saved, name="tuned")
    with pytest.raises(NotFound):
        access_fine_tune_task(charlie, task.pk)


def test_what_a_base_declares_is_offered_and_checked_by_tasks(engine, alice):
    declared = [{"name": "lora_r", "type": "int", "value": 8, "range": [1, 64]}]
    base = make_model_version(alice, declarations=[{**declared[0], "is_editable": True, "description": ""}])
    task = create_custom_fine_tune_task(actor=alice, name="a", command="x", base_model=base.pk)
    assert task.hyperparameters == {"lora_r": "8"}
    with pytest.raises(InvalidFields) as refusal:
        create_custom_fine_tune_task(
            actor=alice, name="a", command="x", base_model=base.pk, hyperparameters={"lora_r": 65}
        )
    assert (refusal.value.code, refusal.value.field) == ("out_of_range", "hyperparameters.lora_r")


def test_an_image_is_a_model_that_can_only_be_served(engine, alice, charlie, settings):
    image = make_image_version(alice, cmd=["serve"])
    version = register_model(actor=alice, name="boxed", source="image", location=str(image.pk))
    assert (version.state, version.format, version.run) == ("ready", "image", None)
    with pytest.raises(Conflict, match="no files of its own"):
        create_custom_fine_tune_task(actor=alice, name="a", command="x", base_model=version.pk)
    settings.CONTAINER_EXECUTORS = ("local_process",)
    service = create_service(actor=alice, name="boxed", model_version=version.pk, image_ports=[5050])
    assert service.versions.get().is_own_server
    with pytest.raises(NotFound):
        register_model(actor=charlie, name="boxed", source="image", location=str(image.pk))
    assert not ModelVersion.objects.filter(tenant_id=charlie.tenant_id).exists()
