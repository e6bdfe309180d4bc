"""Bad input: training configurations as YAML, and the config.json of own code.

The catalogue sends the YAML to the upload of document 003, which a later issue brings. What reads it is here, and the
native API has a route that says what a file means.
"""

from __future__ import annotations

import json
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile

from clavier.files.services import create_folder, delete_file, upload_file
from finetune_app.models import FineTuneTask
from tests.cases.env_and_commands import own_code, with_parameter
from tests.cases.registry import Scene, case

CHECK = "/api/v1/train-configs/check"
#: A paradigm with which all the rest is good.
SFT, LORA, PRETRAIN = "task_type: sft\n", "task_type: lora\n", "task_type: pretrain\n"
BOMB = "a: &a [x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(9))
#: Case -> the texts, each refused alike.
TEXTS: dict[str, tuple[str, ...]] = {
    "CONF-001": ("!!python/object/apply:os.system ['touch /tmp/canary']",),
    "CONF-002": (BOMB,),
    "CONF-003": ("a: 1\n---\nb: 2",),
    "CONF-004": ("\tkey: 1",),
    "CONF-005": ("lr: 1\nlr: 2",),
    "CONF-008": ("- a",),
    "CONF-009": ("task_type: dpo2", "model_name: qwen-7b"),
    "CONF-010": (SFT + "learning_rate: fast",),
    "CONF-012": tuple(f"{SFT}learning_rate: {value}" for value in ("0", "-1", "1e9", ".nan", ".inf")),
    "CONF-013": tuple(f"{SFT}num_train_epochs: {value}" for value in ("0", "1e9")),
    "CONF-014": tuple(f"{SFT}per_device_train_batch_size: {value}" for value in (0, 2**31)),
    "CONF-015": tuple(f"{LORA}lora_r: {value}" for value in (0, 100_000)),
    "CONF-019": (SFT + "lerning_rate: 1",),
    "CONF-023": (SFT + "deepspeed: /etc/passwd", SFT + "deepspeed: ../../etc/passwd"),
    "CONF-024": (SFT + "model_name: no",),
    "CONF-025": (PRETRAIN + "global_batch_size: 7\nper_device_train_batch_size: 4",),
}


def read(*texts: str) -> Any:
    """Sends configurations."""
    return lambda scene: [scene.post(CHECK, {"content": text}) for text in texts]


for case_id, written in TEXTS.items():
    case(case_id)(read(*written))


@case("CONF-011")
def a_number_that_yaml_takes_for_a_text(scene: Scene) -> Any:
    response = scene.post(CHECK, {"content": SFT + "learning_rate: 2e-5"})
    assert response.json()["hyperparameters"]["learning_rate"] == 0.00002
    return response


@case("CONF-026")
def a_strategy_that_is_not_the_folders(scene: Scene) -> Any:
    top = create_folder(actor=scene.alice, area="private", folder="", name="config")
    create_folder(actor=scene.alice, area="private", folder="config", name="LoRA")
    upload = SimpleUploadedFile("x", json.dumps({"fineTuneStrategy": "FineTune"}).encode())
    upload_file(actor=scene.alice, area="private", folder="config/LoRA", name="config.json", upload=upload)
    try:
        return own_code(scene, profilePath="/config/LoRA/config.json")
    finally:
        delete_file(actor=scene.alice, file=top)


@case("CONF-028")
def a_value_that_is_a_number(scene: Scene) -> Any:
    responses = [own_code(scene, name=f"v{n}", **with_parameter("lr", v)) for n, v in enumerate((1e-4, "0.0001"))]
    assert FineTuneTask.objects.get(name="v0").hyperparameters == FineTuneTask.objects.get(name="v1").hyperparameters
    return responses


@case("CONF-029")
def checkpoints_without_saving(scene: Scene) -> Any:
    return own_code(scene, checkPointDir="/data")


@case("CONF-030")
def saving_every_zero_steps(scene: Scene) -> Any:
    return own_code(scene, **with_parameter("save_steps", "0"))
