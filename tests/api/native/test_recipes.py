"""recipes: what a fine-tune task may say."""

from __future__ import annotations

from rest_framework.test import APIClient

from runner.contract.knobs import RECIPES, knobs_of
from tests.api.native.conftest import error_of

URL = "/api/v1/recipes"


def test_every_recipe_is_listed_and_told(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    listed = charlie_client.get(URL).json()["items"]
    assert {item["recipe"]: tuple(item["methods"]) for item in listed} == RECIPES
    for recipe, methods in RECIPES.items():
        for method in methods:
            found = bob_client.get(f"{URL}/{recipe}/{method}").json()["hyperparameters"]
            assert [knob["name"] for knob in found] == [knob.name for knob in knobs_of(recipe, method)]
            assert found == alice_client.get(f"{URL}/{recipe}/{method}").json()["hyperparameters"]


def test_a_hyperparameter_tells_its_bounds_and_help(alice_client: APIClient) -> None:
    found = {knob["name"]: knob for knob in alice_client.get(f"{URL}/sft/lora").json()["hyperparameters"]}
    assert found["lora_r"] | {"help": None} == {
        "name": "lora_r", "type": "int", "default": 16, "minimum": 1, "maximum": 1024, "choices": [], "unit": "",
        "counts_with": None,        "help": None,
    }  # fmt: skip
    assert set(found["lora_r"]["help"]) == {"en", "zh"}
    assert found["target_modules"]["default"] == ["all-linear"]
    assert found["optim"]["choices"][0] == "adamw"


def test_a_hyperparameter_tells_the_choices_of_its_recipe_and_what_it_counts_with(alice_client: APIClient) -> None:
    def told(path: str, name: str) -> dict[str, object]:
        knobs = alice_client.get(f"{URL}/{path}").json()["hyperparameters"]
        return next(knob for knob in knobs if knob["name"] == name)

    assert told("sft/lora", "length_policy")["choices"] == ["truncate", "drop", "split"]
    assert told("classify/lora", "length_policy")["choices"] == ["truncate", "drop"]
    assert told("rl/lora", "kl_target")["counts_with"] == {"algorithm": ["ppo"]}


def test_a_recipe_that_is_none_is_a_404(alice_client: APIClient) -> None:
    for path, field in (("magic/lora", "recipe"), ("sft/magic", "method")):
        response = alice_client.get(f"{URL}/{path}")
        assert (response.status_code, error_of(response)["field"]) == (404, field)
