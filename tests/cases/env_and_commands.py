"""Bad input: variables, hyperparameters and commands of own code."""

from __future__ import annotations

from typing import Any

from finetune_app.models import FineTuneTask
from tests.cases.registry import ENGLISH, Scene, case

CREATE, NATIVE = "/kernel/fineTune/createLlmFineTuneTask", "/api/v1/fine-tune-tasks/custom"
SHELL = "$(touch /tmp/canary)`id`;|&"


def own_code(scene: Scene, **fields: Any) -> Any:
    """A task of own code with these fields."""
    own = {"createWay": "custom", "command": "true", "modelVersionId": "", "datasetVersionId": ""}
    return scene.post(CREATE, {**own, "outputDir": "/out", **fields})


def native(scene: Scene, **fields: Any) -> Any:
    """The same through the native API."""
    return scene.client.post(NATIVE, {"name": "own", "command": "true", **fields}, format="json", **ENGLISH)


def with_parameter(name: str, value: Any) -> dict[str, Any]:
    """A body with one hyperparameter."""
    return {"commonHyperParameters": [{"name": name, "value": value}]}


@case("CMD-002")
def a_variable_without_a_name(scene: Scene) -> Any:
    assert native(scene, environment={"": "x"}).json()["error"]["code"] == "bad_name"
    return [own_code(scene, variable=[{name: "x"}]) for name in ("", "a b")]


@case("CMD-003")
def a_value_with_nul(scene: Scene) -> Any:
    return own_code(scene, variable=[{"A": "x\0y"}])


@case("CMD-006")
def a_variable_of_the_platforms(scene: Scene) -> Any:
    assert native(scene, environment={"FTP_ATTEMPT_ID": "1"}).json()["error"]["code"] == "reserved_name"
    return own_code(scene, variable=[{"FTP_ATTEMPT_ID": "1"}])


@case("CMD-007")
def too_many_variables(scene: Scene) -> Any:
    many = own_code(scene, variable=[{f"A{number}": ""} for number in range(1000)])
    return [many, own_code(scene, variable=[{"A": "x" * 2**20}])]


@case("CMD-008")
def a_variable_that_is_no_mapping(scene: Scene) -> Any:
    return own_code(scene, variable=["A=B"])


@case("CMD-009")
def no_command(scene: Scene) -> Any:
    return own_code(scene, command="")


@case("CMD-010")
def a_command_with_nul(scene: Scene) -> Any:
    assert native(scene, command="a\0b").json()["error"]["field"] == "command"
    return own_code(scene, command="a\0b")


@case("CMD-011")
def a_command_of_200_kib(scene: Scene) -> Any:
    return own_code(scene, command="x" * 200_000)


@case("CMD-013")
def a_hyperparameter_that_is_a_flag(scene: Scene) -> Any:
    return own_code(scene, **with_parameter("--output_dir=/etc", "x"))


@case("CMD-014")
def a_value_with_a_newline(scene: Scene) -> Any:
    return own_code(scene, **with_parameter("learning_rate", "1e-4\n--report_to x"))


@case("CMD-015")
def a_hyperparameter_that_is_the_platforms(scene: Scene) -> Any:
    return own_code(scene, **with_parameter("output_dir", "x"))


@case("CMD-016")
def a_command_and_an_algorithm(scene: Scene) -> Any:
    return own_code(scene, algorithmId="1")


@case("CMD-019")
def shell_words_in_a_value(scene: Scene) -> Any:
    response = own_code(scene, name="literal", **with_parameter("prompt", SHELL))
    if response.status_code == 200:
        assert FineTuneTask.objects.get(name="literal").hyperparameters["prompt"] == SHELL
    return response
