"""Bad input, and good input that looks bad: names and descriptions.

The catalogue aims NAME-001 to NAME-018 at experiments. What holds for every name is sent to fine-tune tasks, a second
spelling of one name to data sets, whose names are unique, and what is only wrong in a name that becomes part of an
address (NAME-004, NAME-007) to services.
"""

from __future__ import annotations

from typing import Any

from finetune_app.models import FineTuneTask
from models_app.services import check_model_name
from tests.cases.registry import Scene, case

CREATE, NATIVE = "/kernel/fineTune/createLlmFineTuneTask", "/api/v1/fine-tune-tasks"
DATASETS, SERVE = "/api/v1/datasets", "/model/modelServer/createModelInferenceServer"
#: Case -> a name that is none.
BAD_NAMES = {
    "NAME-001": "",
    "NAME-002": "   ",
    "NAME-005": "-a",
    "NAME-008": "a\nb",
    "NAME-009": "a\0",
    "NAME-011": "abc\u202egnp.exe",
    "NAME-012": "a\u200db",
    "NAME-018": "a/b",
}


def named(scene: Scene, name: str) -> Any:
    """A task of this name, all else being good."""
    good = scene.bodies[CREATE]
    body = {"name": name, "recipe": "sft", "method": "lora", "base_model": good["modelVersionId"]}
    return scene.post(NATIVE, {**body, "train_dataset": good["datasetVersionId"]})


def bad_address(name: str) -> Any:
    """Sends a name that is good for a task and no part of an address."""

    def send(scene: Scene) -> Any:
        check_model_name(name)
        version = scene.bodies[SERVE]["modelServerVersions"][0]["aiApplicationVersionId"]
        legacy = scene.post(SERVE, {"modelServer": {"name": name}})
        assert (legacy.status_code, legacy.json()["error"]) == (400, "bad_name")
        return scene.post("/api/v1/services", {"name": name, "model_version": version})

    return send


def bad_name(name: str) -> Any:
    """Sends a name that is none."""
    return lambda scene: named(scene, name)


for case_id, hostile in BAD_NAMES.items():
    case(case_id)(bad_name(hostile))


case("NAME-004")(bad_address("Exp"))
case("NAME-007")(bad_address("a_b.c"))


@case("NAME-013")
def a_lone_surrogate(scene: Scene) -> Any:
    return scene.raw(NATIVE, '{"name": "\\ud800"}')


@case("NAME-014")
def one_name_in_two_normal_forms(scene: Scene) -> Any:
    return scene.post(DATASETS, {"name": "cafe\u0301"})


def kept(describe: str) -> Any:
    """Sends a description and looks whether it was kept byte for byte."""

    def send(scene: Scene) -> Any:
        response = scene.post(CREATE, {"name": "described", "describe": describe})
        assert FineTuneTask.objects.get(name="described").description == describe
        return response

    return send


case("NAME-019")(kept("客服机器人微调 v1"))
case("NAME-020")(kept("🤖𠮷"))
case("NAME-021")(kept("<img src=x onerror=alert(1)>"))


@case("NAME-022")
def a_name_that_is_taken(scene: Scene) -> Any:
    return scene.post(CREATE, {"name": "there"})


@case("NAME-023")
def the_same_name_in_two_tenants(scene: Scene) -> Any:
    return scene.post(CREATE, {"name": scene.victims["task_name"]})
