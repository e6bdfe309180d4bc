"""The forms of own code: what they create, and what they say."""

from __future__ import annotations

from evaluation_app.models import EvaluationTask
from finetune_app.models import FineTuneTask
from inference_app.models import InferenceService
from tests.portal.test_forms import errors_of
from tests.worlds import put_tree

CODE = {
    "name": "mine", "command": "python train.py --data ${input_dir} --out ${output_dir}", "code_folder": "private/code",
    "output_folder": "private/out", "environment": "MODE=fast\nEMPTY=", "resource_group": "default",
}  # fmt: skip


def test_a_task_of_own_code_is_created_from_the_form(alice_browser, world, alice, spooled):
    put_tree(alice, spooled, {"code/train.py": "print(1)"})
    page = alice_browser.get("/tasks/new/own-code").content.decode()
    assert "${checkpoint_dir}" in page
    assert str(world.base) in page
    data = CODE | {
        "train_dataset": str(world.data.pk), "base_model": str(world.base.pk),
        "hyperparameters": "lora_r=8\n\nlr = 1e-4",
    }  # fmt: skip
    response = alice_browser.post("/tasks/new/own-code", data | {"start": ""})
    task = FineTuneTask.objects.get(name="mine", create_way="custom")
    assert response["Location"] == f"/tasks/{task.pk}"
    assert task.hyperparameters == {"lora_r": "8", "lr": "1e-4"}
    assert task.own_code["environment"] == {"MODE": "fast", "EMPTY": ""}
    shown = alice_browser.get(f"/tasks/{task.pk}").content.decode()
    assert "python train.py --data ${input_dir} --out ${output_dir}" in shown
    assert alice_browser.get("/tasks").status_code == 200


def test_the_form_says_beside_the_field_what_is_wrong(alice_browser, world):
    response = alice_browser.post("/tasks/new/own-code", CODE | {"command": "a | b", "code_folder": "private/none"})
    assert response.status_code == 400
    assert any("script in the working folder" in error for error in errors_of(response))
    response = alice_browser.post("/tasks/new/own-code", CODE | {"code_folder": "private/none", "command": "x"})
    assert response.status_code == 404
    assert any("private/none" in error for error in errors_of(response))


def test_an_evaluation_by_an_own_program_is_created_and_its_results_are_shown(alice_browser, world, alice, spooled):
    put_tree(alice, spooled, {"code/run.py": "print(1)"})
    data = CODE | {"command": "python run.py ${model_dir} -w ${output_dir}", "model_version": str(world.base.pk)}
    alice_browser.post("/evaluations/new/own-code", data)
    task = EvaluationTask.objects.get(create_way="custom")
    EvaluationTask.objects.update(results={"metrics": {"piqa/accuracy": 78.45}, "sources": {}, "files": 1})
    page = alice_browser.get(f"/evaluations/{task.pk}").content.decode()
    assert "piqa/accuracy" in page
    assert "78.45" in page
    assert alice_browser.get("/evaluations").status_code == 200


def test_a_service_with_an_own_server_is_saved_as_a_draft(alice_browser, world):
    data = {
        "name": "own", "model_version": str(world.base.pk), "num_replicas": "2", "parallel": "4",
        "command": "serve ${port}",
        "image_ports": "5050, 8080", "min_replicas": "1", "max_replicas": "3", "scale_on": "concurrency",
        "scale_threshold": "20", "environment": "MODE=fast", "resource_group": "default", "save": "",
    }  # fmt: skip
    response = alice_browser.post("/services/new", data)
    assert response.status_code == 302, errors_of(response)
    version = InferenceService.objects.get(name="own").versions.get()
    assert (version.image_ports, version.max_replicas, version.scale_on) == ([5050, 8080], 3, "concurrency")
    assert alice_browser.get(response["Location"]).status_code == 200
    bad = alice_browser.post("/services/new", data | {"name": "bad", "image_ports": "22;id"})
    assert any("1-65535" in error for error in errors_of(bad))
