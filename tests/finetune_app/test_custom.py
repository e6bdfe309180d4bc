"""Tasks of the user's own code: what is refused, what is stored, what a run is told."""

from __future__ import annotations

import json

import pytest

from clavier.core.errors import Forbidden, Invalid, InvalidFields, NotFound, Unprocessable
from clavier.files.models import StorageUsage, StoredFile
from clavier.runs.models import Run, RunFolder
from clavier.runs.outputs import run_folder
from finetune_app.custom import create_custom_fine_tune_task
from finetune_app.models import FineTuneTask
from finetune_app.queries import output_version
from finetune_app.services import access_fine_tune_task, retry_fine_tune_task, start_fine_tune_task
from tests.engine import assert_consistent, make_engine
from tests.worlds import make_dataset, make_image_version, make_model_version, put_tree, spec_on_disk

pytestmark = pytest.mark.django_db(transaction=True)

PROFILE = {
    "commonHyperParameters": [
        {"name": "learning_rate", "value": "1e-4"},
        {"name": "save_strategy", "value": "steps"},
        {"name": "save_steps", "value": "200"},
    ],
    "fineTuneHyperParameters": [{"name": "lora_r", "value": "8"}],
    "fineTuneStrategy": "LoRA",
}


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files={"output/adapter.bin": "weights", "checkpoints/checkpoint-200/state.json": "{}"})
    return made


@pytest.fixture
def asked(alice, spooled):
    """A good request of Alice's, as document 001 has it."""
    put_tree(
        alice,
        spooled,
        {
            "code/train.py": "print(1)",
            "data/train/a.jsonl": "{}",
            "data/validate/a.jsonl": "{}",
            "data/test/a.jsonl": "{}",
            "model/config.json": "{}",
            "config/LoRA/config.json": json.dumps(PROFILE),
        },
    )
    return {
        "actor": alice,
        "name": "mine",
        "command": "python train.py --model ${model_dir} --data ${input_dir} --out ${output_dir}",
        "code_folder": "private/code",
        "data_folder": "private/data",
        "model_folder": "private/model",
        "profile_path": "private/config/LoRA/config.json",
        "output_folder": "private/out/lora",
        "checkpoint_folder": "private/ckpt",
    }


def paths_of(actor):
    """Every file and folder of the actor's private area."""
    return set(StoredFile.objects.filter(created_by_id=actor.user_id).values_list("path", flat=True))


def test_the_run_is_told_folders_values_and_environment(engine, asked, home):
    task = create_custom_fine_tune_task(**asked, environment={"MY_MODE": "$(id)"})
    engine.step()
    root = run_folder(task.run_id)
    private = home / "files" / str(asked["actor"].tenant_id) / str(asked["actor"].user_id) / "private"
    spec = task.run.run_spec()
    assert spec.argv == (
        "python", "train.py", "--model", f"{private}/model", "--data", f"{private}/data", "--out", f"{root}/output",
        "--learning_rate", "1e-4", "--save_strategy", "steps", "--save_steps", "200", "--lora_r", "8",
    )  # fmt: skip
    assert (spec.program, spec.start_in) == (None, "work/code")
    assert spec.environment["MY_MODE"] == "$(id)"
    assert spec.environment["HP_LEARNING_RATE"] == "1e-4"
    assert spec.environment["CLAVIER_CHECKPOINT_DIR"] == f"{root}/checkpoints"
    assert {(mount.source, mount.writable) for mount in spec.mounts} == {
        (f"{private}/model", False), (f"{private}/data", False),
    }  # fmt: skip
    assert (root / "work/code/train.py").read_text() == "print(1)"
    config = json.loads((root / "work/config.json").read_text())
    assert config["fineTuneStrategy"] == "LoRA"
    assert config["fineTuneHyperParameters"] == [{"name": "lora_r", "value": "8"}]
    assert (task.create_way, task.method, task.is_pretrain) == ("custom", "lora", False)


def test_explicit_values_win_and_what_the_command_names_is_not_appended(engine, asked):
    task = create_custom_fine_tune_task(
        **asked | {"command": "train ${learning_rate} ${save_steps}"}, hyperparameters={"learning_rate": 3e-5}
    )
    assert task.run.run_spec().argv == ("train", "3e-05", "200", "--save_strategy", "steps", "--lora_r", "8")
    config = create_custom_fine_tune_task(**asked | {"command": "train ${config}"}).run.run_spec().argv
    assert config[0] == "train"
    assert config[1].endswith("/work/config.json")
    assert len(config) == 2


def test_shell_words_in_a_value_reach_the_program_as_one_argument(engine, asked):
    value = "$(touch /tmp/canary)`id`;|&"
    task = create_custom_fine_tune_task(**asked | {"command": "train ${prompt}"}, hyperparameters={"prompt": value})
    assert task.run.run_spec().argv[:2] == ("train", value)


def test_an_own_command_is_never_asked_to_make_room(engine, asked):
    assert create_custom_fine_tune_task(**asked).run.preemptible is False


def test_the_output_becomes_files_of_the_owner_and_is_charged(engine, asked):
    alice = asked["actor"]
    before = StorageUsage.objects.get(user_id=alice.user_id).bytes_used
    task = create_custom_fine_tune_task(**asked)
    engine.step(2)
    task = access_fine_tune_task(alice, task.pk)
    assert task.run.state == "COMPLETED", task.run.message
    assert {"out/lora", "out/lora/adapter.bin", "ckpt/checkpoint-200/state.json"} <= paths_of(alice)
    assert "out/lora/MANIFEST.json" not in paths_of(alice)
    assert StorageUsage.objects.get(user_id=alice.user_id).bytes_used == (
        before + len("weights") + len("{}") + RunFolder.objects.get().size_bytes
    )
    assert json.loads((run_folder(task.run_id) / "output/MANIFEST.json").read_text())["files"] == [
        {"path": "adapter.bin", "size": 7}
    ]
    assert output_version(task) is None
    assert_consistent()


def test_a_second_run_replaces_files_of_an_equal_name(engine, asked):
    alice = asked["actor"]
    create_custom_fine_tune_task(**asked)
    engine.step(2)
    engine.will(files={"output/adapter.bin": "longer weights"})
    create_custom_fine_tune_task(**asked)
    engine.step(2)
    row = StoredFile.objects.get(path="out/lora/adapter.bin")
    assert row.size_bytes == len("longer weights")
    assert [run.state for run in Run.objects.all()] == ["COMPLETED"] * 2
    first = Run.objects.order_by("created_at").first()
    assert (run_folder(first.pk) / "output/adapter.bin").read_text() == "weights"
    assert StoredFile.objects.filter(created_by_id=alice.user_id, path="out/lora").count() == 1


def test_output_that_does_not_fit_the_quota_fails_the_run_in_words(engine, asked):
    StorageUsage.objects.update(bytes_limit=StorageUsage.objects.get().bytes_used + 3)
    task = create_custom_fine_tune_task(**asked)
    engine.step(2)
    run = access_fine_tune_task(asked["actor"], task.pk).run
    assert (run.state, run.end_reason) == ("FAILED", "STORAGE_QUOTA")
    assert "storage left" in run.message
    assert not any(path.startswith("out") for path in paths_of(asked["actor"]))
    assert (run_folder(run.pk) / "output/adapter.bin").exists()
    assert_consistent()


def test_an_empty_output_fails_the_run_and_says_where_to_write(engine, asked):
    engine.will(files={"checkpoints/a": "x"})
    task = create_custom_fine_tune_task(**asked)
    engine.step(2)
    run = access_fine_tune_task(asked["actor"], task.pk).run
    assert (run.state, run.end_reason) == ("FAILED", "NO_OUTPUT")
    assert "outputDir" in run.message
    assert "ckpt/a" in paths_of(asked["actor"])


def test_versions_are_laid_out_like_a_data_folder(engine, asked, alice, spooled):
    data, model = make_dataset(alice, spooled), make_model_version(alice)
    task = create_custom_fine_tune_task(
        **asked | {"data_folder": "", "model_folder": ""}, train_dataset=data.pk, base_model=model.pk, is_pretrain=True
    )
    engine.step()
    root = run_folder(task.run_id)
    spec = task.run.run_spec()
    assert f"{root}/work/data" in spec.argv
    assert str(model.path) in spec.argv
    assert (root / "work/data/train/train.jsonl").read_text().count("\n") == 5
    assert task.is_pretrain
    assert spec_on_disk(task.run_id)["argv"] == list(spec.argv)


def test_nodes_and_roles_go_into_the_run(engine, asked):
    roles = [
        {"name": "worker", "count": 3, "resources": {"cpu_milli": 100, "memory_mib": 128}},
        {"name": "master", "count": 1, "resources": {"cpu_milli": 200, "memory_mib": 256}},
    ]
    options = {"roles": roles, "priority": 5, "is_urgent": True}
    spec = create_custom_fine_tune_task(**asked, options=options).run.run_spec()
    assert [(role.name, role.count) for role in spec.roles] == [("master", 1), ("worker", 3)]
    assert (spec.resources.cpu_milli, spec.priority, spec.is_urgent) == (200, 5, True)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"command": ""}, "required", "command"),
        ({"command": "a\0b"}, "bad_value", "command"),
        ({"command": "python train.py | tee x"}, "bad_value", "command"),
        ({"command": "python ${outputdir}"}, "unknown_placeholder", "command"),
        ({"command": "python ${model_dir}", "model_folder": ""}, "unknown_placeholder", "command"),
        ({"environment": {"LD_PRELOAD": "x"}}, "reserved_name", "environment.LD_PRELOAD"),
        ({"hyperparameters": {"output_dir": "/etc"}}, "not_settable", "hyperparameters.output_dir"),
        ({"hyperparameters": {"save_steps": "0"}}, "out_of_range", "hyperparameters.save_steps"),
        ({"profile_path": ""}, "required", "hyperparameters.save_strategy"),
        ({"code_folder": "private/../../etc"}, "path_outside_root", "code_folder"),
        ({"code_folder": "/etc"}, "bad_value", "code_folder"),
        ({"code_folder": "private/code/train.py"}, "bad_value", "code_folder"),
        ({"output_folder": "private/code/train.py/out"}, "bad_value", "output_folder"),
        ({"data_folder": "private/code"}, "bad_layout", "data_folder"),
        ({"method": "qlora++"}, "not_a_choice", "method"),
        ({"name": "a\nb"}, "bad_name", "name"),
        ({"options": {"roles": [{"name": "boss"}]}}, "not_a_choice", "options.roles[0].name"),
        ({"options": {"colour": "red"}}, "unknown_field", "options.colour"),
    ],
)
def test_what_is_not_allowed_is_refused_and_nothing_is_left(engine, asked, change, code, field):
    with pytest.raises(Invalid) as refusal:
        create_custom_fine_tune_task(**asked | change)
    assert (refusal.value.code, refusal.value.field) == (code, field)
    assert not FineTuneTask.objects.exists()
    assert not Run.objects.exists()


def test_all_that_is_wrong_is_said_at_once(engine, asked):
    change = {"command": "", "environment": {"PATH": "x"}, "hyperparameters": {"--x": 1}, "method": "magic"}
    with pytest.raises(InvalidFields) as refusal:
        create_custom_fine_tune_task(**asked | change)
    assert {problem.code for problem in refusal.value.problems} >= {
        "required", "reserved_name", "bad_name", "not_a_choice",
    }  # fmt: skip


def test_a_profile_that_contradicts_its_folder_is_refused(engine, asked, alice, spooled):
    put_tree(alice, spooled, {"config/FineTune/config.json": json.dumps(PROFILE)})
    with pytest.raises(Invalid, match="fineTuneStrategy is LoRA, but it lies in the folder FineTune") as refusal:
        create_custom_fine_tune_task(**asked | {"profile_path": "private/config/FineTune/config.json"})
    assert refusal.value.code == "conflicting_fields"


def test_a_folder_and_a_version_exclude_each_other(engine, asked, alice, spooled):
    data, model = make_dataset(alice, spooled), make_model_version(alice)
    with pytest.raises(InvalidFields) as refusal:
        create_custom_fine_tune_task(**asked, train_dataset=data.pk, base_model=model.pk)
    assert [problem.code for problem in refusal.value.problems] == ["conflicting_fields"] * 2


def test_where_containers_are_required_own_code_is_refused(engine, asked, settings):
    settings.ALLOW_CUSTOM_CODE = False
    with pytest.raises(Unprocessable, match="in containers only") as refusal:
        create_custom_fine_tune_task(**asked)
    assert refusal.value.code == "needs_container"


def test_charlie_can_not_run_the_code_or_read_the_folders_of_alice(engine, asked, charlie, bob):
    for stranger in (charlie, bob):
        for name in ("code_folder", "data_folder", "model_folder", "profile_path"):
            others = dict.fromkeys(("code_folder", "data_folder", "model_folder", "profile_path"), "")
            change = others | {"actor": stranger, "command": "true", "checkpoint_folder": "", name: asked[name]}
            with pytest.raises(NotFound) as refusal:
                create_custom_fine_tune_task(**asked | change)
            assert refusal.value.field == name
    task = create_custom_fine_tune_task(**asked, start=False)
    with pytest.raises(NotFound):
        access_fine_tune_task(charlie, task.pk)
    with pytest.raises(Forbidden):
        start_fine_tune_task(actor=bob, task=access_fine_tune_task(bob, task.pk))


def test_a_retry_by_a_manager_still_reads_the_folders_of_the_creator(engine, asked, bob, alice, spooled):
    put_tree(bob, spooled, {"code/train.py": "print(2)"})
    engine.will(exit_code=1)
    task = create_custom_fine_tune_task(
        actor=bob, name="bobs", command="python train.py", code_folder="private/code", output_folder="private/out"
    )
    engine.step(2)
    engine.will(files={"output/x": "1"})
    task = retry_fine_tune_task(actor=alice, task=access_fine_tune_task(alice, task.pk))
    engine.step(2)
    assert access_fine_tune_task(bob, task.pk).run.state == "COMPLETED"
    assert "out/x" in paths_of(bob)
    assert "out/x" not in paths_of(alice)


def test_a_retry_may_change_what_reaches_the_program(engine, asked):
    engine.will(exit_code=1)
    task = create_custom_fine_tune_task(**asked)
    engine.step(2)
    with pytest.raises(Invalid, match="save_steps"):
        retry_fine_tune_task(actor=asked["actor"], task=task, hyperparameters={"save_steps": "often"})
    task = retry_fine_tune_task(actor=asked["actor"], task=task, hyperparameters={"learning_rate": 0.5})
    assert task.hyperparameters["learning_rate"] == "0.5"


def test_a_saved_task_is_checked_and_starts_later(engine, asked):
    with pytest.raises(Invalid, match=r"\$\{nope\}"):
        create_custom_fine_tune_task(**asked | {"command": "x ${nope}"}, start=False)
    task = create_custom_fine_tune_task(**asked, start=False)
    assert task.run is None
    assert start_fine_tune_task(actor=asked["actor"], task=task).run.state == "PENDING"


def test_an_image_goes_into_the_run_where_a_node_runs_containers(engine, asked, alice, charlie, settings):
    version = make_image_version(alice)
    with pytest.raises(Unprocessable, match="no node that runs containers") as refusal:
        create_custom_fine_tune_task(**asked, image=version.pk)
    assert (refusal.value.code, refusal.value.field) == ("needs_container", "image")
    settings.CONTAINER_EXECUTORS = ("local_process",)
    settings.ALLOW_CUSTOM_CODE = False
    task = create_custom_fine_tune_task(**asked, image=version.pk)
    assert task.run.run_spec().image.id == version.content_id
    strangers = make_image_version(charlie)
    with pytest.raises(NotFound) as missing:
        create_custom_fine_tune_task(**asked, image=strangers.pk)
    assert missing.value.field == "image"
