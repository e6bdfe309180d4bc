"""Bad input, and good input that looks bad: names and descriptions."""

from __future__ import annotations

from typing import Any

from finetune_app.models import FineTuneTask
from tests.cases.registry import Scene, case

CREATE = "/kernel/fineTune/createLlmFineTuneTask"


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
