"""Tasks: created with every check, run, and turned into a model version."""

from __future__ import annotations

import pytest

from clavier.core.errors import Conflict, Forbidden, Invalid, InvalidFields, NotFound, Unprocessable
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from finetune_app.models import FineTuneTask
from finetune_app.queries import output_version
from finetune_app.services import (
    access_fine_tune_task,
    create_fine_tune_task,
    delete_fine_tune_task,
    retry_fine_tune_task,
    start_fine_tune_task,
    stop_fine_tune_task,
)
from inference_app.services import create_service
from inference_app.specs import run_spec_of
from models_app.models import ModelVersion
from models_app.services import delete_model_version
from tests.engine import assert_consistent, make_engine
from tests.worlds import FACTS, make_dataset, make_model_version, output_of, spec_on_disk

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files=output_of())
    return made


@pytest.fixture
def asked(alice, spooled):
    """A good request of Alice's."""
    return {
        "actor": alice,
        "name": "first",
        "recipe": "sft",
        "method": "lora",
        "base_model": make_model_version(alice).pk,
        "train_dataset": make_dataset(alice, spooled).pk,
        "hyperparameters": {"learning_rate": "2e-5"},
    }


def test_a_task_becomes_a_model_version_with_its_lineage(engine, asked):
    task = create_fine_tune_task(**asked)
    engine.step(2)
    task = access_fine_tune_task(asked["actor"], task.pk)
    version = output_version(task)
    assert task.run.state == "COMPLETED"
    assert (version.base_version_id, version.dataset_version_id) == (asked["base_model"], asked["train_dataset"])
    assert (str(version), version.state, version.architecture) == ("first@1", "ready", "Qwen2ForCausalLM")
    assert version.path == run_folder(task.run.pk) / "output/model"
    assert spec_on_disk(task.run.pk)["parameters"]["hyperparameters"]["learning_rate"] == 2e-5
    assert_consistent()


def test_a_failed_run_makes_no_version_and_can_be_retried(engine, asked):
    engine.will(exit_code=1)
    task = create_fine_tune_task(**asked)
    engine.step(2)
    assert not ModelVersion.objects.filter(source="fine_tune").exists()
    engine.will(files=output_of())
    task = retry_fine_tune_task(actor=asked["actor"], task=access_fine_tune_task(asked["actor"], task.pk))
    engine.step(2)
    assert [run.state for run in Run.objects.order_by("created_at")] == ["FAILED", "COMPLETED"]
    with pytest.raises(Conflict, match="Only a failed or stopped task"):
        retry_fine_tune_task(actor=asked["actor"], task=access_fine_tune_task(asked["actor"], task.pk))


def test_every_bad_field_is_named_at_once_and_nothing_is_left(engine, asked):
    asked["hyperparameters"] = {"learning_rate": "NaN", "lora_rank": 8, "num_train_epochs": -1}
    with pytest.raises(InvalidFields) as refusal:
        create_fine_tune_task(**asked)
    fields = {problem.field for problem in refusal.value.problems}
    assert fields == {"hyperparameters.learning_rate", "hyperparameters.lora_rank", "hyperparameters.num_train_epochs"}
    assert "lora_r" in str(refusal.value)
    assert not Run.objects.exists()
    assert not FineTuneTask.objects.exists()


def test_bad_knobs_names_rows_and_resources_are_told_together(engine, asked, alice, spooled):
    pairs = make_dataset(alice, spooled, [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2, name="pairs")
    asked |= {"name": "a/b", "hyperparameters": {"lora_rank": 8}, "train_dataset": pairs.pk, "resources": {"gpus": -1}}
    with pytest.raises(InvalidFields) as refusal:
        create_fine_tune_task(**asked)
    fields = {problem.field for problem in refusal.value.problems}
    assert fields == {"name", "hyperparameters.lora_rank", "train_dataset", "resources.gpus"}
    with pytest.raises(InvalidFields, match="recipe"):
        create_fine_tune_task(**asked | {"recipe": "magic"})


def test_a_change_that_a_retry_brings_is_checked_like_a_new_task(engine, asked):
    engine.will(exit_code=1)
    task = create_fine_tune_task(**asked)
    engine.step(2)
    actor = asked["actor"]
    with pytest.raises(Invalid, match="validation_dataset"):
        retry_fine_tune_task(actor=actor, task=task, hyperparameters={"load_best": True})
    task = access_fine_tune_task(actor, task.pk)
    assert (task.hyperparameters["load_best"], Run.objects.count()) == (False, 1)


def test_a_retry_goes_on_from_the_newest_checkpoint_of_the_same_training(engine, asked):
    def ended(**files):
        engine.will(exit_code=1, files=files)
        engine.step(3)
        return access_fine_tune_task(actor, task.pk)

    def source(**changes):
        again = retry_fine_tune_task(actor=actor, task=access_fine_tune_task(actor, task.pk), **changes)
        return again.run.spec["parameters"].get("resume_from"), [mount["source"] for mount in again.run.spec["mounts"]]

    actor, task = asked["actor"], create_fine_tune_task(**asked)
    sealed = {"checkpoints/step-00000500/MANIFEST.json": "{}"}
    first = str(run_folder(ended(**sealed).run.pk) / "checkpoints")
    resumed, mounts = source(time_limit_s=7200, resources={"memory_mib": 8192})
    assert resumed == first
    assert first in mounts
    ended()  # which has sealed none of its own
    assert source()[0] == first
    second = str(run_folder(ended(**sealed).run.pk) / "checkpoints")
    assert source(resume=False)[0] is None
    ended()
    assert source()[0] == second
    ended()
    assert source(hyperparameters={"learning_rate": 1e-3})[0] is None
    ended(**sealed)
    assert source(hyperparameters={"learning_rate": 2e-5})[0] == second
    assert_consistent()


def test_of_two_who_start_or_retry_a_task_at_once_one_comes_second(engine, asked):
    actor, task = asked["actor"], create_fine_tune_task(**asked, start=False)
    stale = access_fine_tune_task(actor, task.pk)
    start_fine_tune_task(actor=actor, task=task)
    with pytest.raises(Conflict, match="started before"):
        start_fine_tune_task(actor=actor, task=stale)
    engine.will(exit_code=1)
    engine.step(2)
    first, second = access_fine_tune_task(actor, task.pk), access_fine_tune_task(actor, task.pk)
    retry_fine_tune_task(actor=actor, task=first)
    with pytest.raises(Conflict, match="Only a failed or stopped task"):
        retry_fine_tune_task(actor=actor, task=second)
    assert Run.objects.count() == 2


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"recipe": "magic"}, Invalid, "not_a_choice"),
        ({"method": "qloraaa"}, Invalid, "not_a_choice"),
        ({"base_model": None}, Invalid, "required"),
        ({"name": "a\nb"}, Invalid, "bad_name"),
        ({"resources": {"cpu_milli": 0}}, InvalidFields, "out_of_range"),
        ({"resources": {"cores": 1}}, InvalidFields, "unknown_field"),
        ({"resources": {"gpus": 8}}, Unprocessable, "unschedulable"),
    ],
)
def test_what_is_not_allowed_is_refused(engine, asked, change, error, code):
    with pytest.raises(error) as refusal:
        create_fine_tune_task(**(asked | change))
    assert refusal.value.code == code
    assert not FineTuneTask.objects.exists()


def test_data_of_another_kind_is_refused_with_the_kinds_that_fit(engine, asked, spooled):
    pairs = make_dataset(asked["actor"], spooled, [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2, name="pairs")
    with pytest.raises(Invalid, match="question_answer") as refusal:
        create_fine_tune_task(**(asked | {"train_dataset": pairs.pk}))
    assert refusal.value.field == "train_dataset"


def test_an_adapter_is_no_base(engine, asked, alice):
    adapter = make_model_version(alice, "adapter", format="adapter")
    with pytest.raises(Invalid, match="is an adapter"):
        create_fine_tune_task(**(asked | {"base_model": adapter.pk}))


PAIRS = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(4)]
VERDICTS = [{"prompt": f"q{n}", "completion": "yes", "label": n % 2 == 0} for n in range(4)]


def test_a_reward_model_is_told_from_a_chat_model(engine, asked, alice, spooled):
    pairs = make_dataset(alice, spooled, PAIRS, name="pairs")
    engine.will(files=output_of({**FACTS, "task": "reward"}))
    task = create_fine_tune_task(**(asked | {"recipe": "reward", "train_dataset": pairs.pk}))
    engine.step(2)
    version = output_version(access_fine_tune_task(alice, task.pk))
    assert version.task == "reward"
    service = create_service(actor=alice, name="scores", model_version=version.pk, start=False)
    assert run_spec_of(service.versions.get()).parameters["server"] == "scoring"
    classifier = make_model_version(alice, "classes", task="classification")
    with pytest.raises(Invalid, match="is a model for classification; a service needs one for generation or reward"):
        create_service(actor=alice, name="helper", model_version=classifier.pk)
    with pytest.raises(Invalid, match="the recipe sft needs one for generation"):
        create_fine_tune_task(**(asked | {"base_model": version.pk}))


def test_reinforcement_needs_a_reward_model_or_a_rule(engine, asked, alice, spooled):
    prompts = make_dataset(alice, spooled, [{"prompt": f"Say {n}"} for n in range(3)], name="prompts")
    base = make_model_version(alice, "scorer-base")
    scorer = make_model_version(alice, "scorer", format="adapter", base_version=base, task="reward")
    wanted = asked | {"recipe": "rl", "train_dataset": prompts.pk, "hyperparameters": {}}
    for change, code in (
        ({}, "required"),
        ({"reward_model": base.pk}, "wrong_task"),
        ({"reward_model": scorer.pk, "hyperparameters": {"reward_function": "length"}}, "unknown_field"),
        ({"reward_model": scorer.pk, "validation_dataset": prompts.pk}, "unknown_field"),
    ):
        with pytest.raises(Invalid) as refusal:
            create_fine_tune_task(**(wanted | change))
        assert refusal.value.code == code
    task = create_fine_tune_task(**(wanted | {"reward_model": scorer.pk}))
    spec = task.run.spec
    assert spec["parameters"]["reward_model"] == {"model": str(base.path), "adapter": str(scorer.path)}
    assert {str(base.path), str(scorer.path)} <= {mount["source"] for mount in spec["mounts"]}


def test_gpus_that_can_not_share_the_answers_evenly_are_refused(engine, asked):
    knobs = {"algorithm": "grpo", "reward_function": "length", "rollout_batch_size": 3, "num_generations": 3}
    wanted = asked | {"recipe": "rl", "hyperparameters": knobs, "resources": {"gpus": 4}}
    with pytest.raises(Invalid, match="4 GPUs can not share 3 prompts with 3 answers each evenly") as refusal:
        create_fine_tune_task(**wanted)
    assert (refusal.value.code, refusal.value.field) == ("conflicting_fields", "resources")


def test_a_task_without_gpus_trains_in_one_process(engine, asked):
    task = create_fine_tune_task(**asked)
    assert task.run.spec["parameters"]["num_processes"] == 1


def test_single_verdicts_are_for_kto_only(engine, asked, alice, spooled):
    verdicts = make_dataset(alice, spooled, VERDICTS, name="verdicts")
    assert verdicts.kind == "binary_preference"
    wanted = asked | {"recipe": "preference", "train_dataset": verdicts.pk}
    with pytest.raises(Invalid, match="Use loss_type kto") as refusal:
        create_fine_tune_task(**(wanted | {"hyperparameters": {"loss_type": "dpo"}}))
    assert refusal.value.field == "train_dataset"
    task = create_fine_tune_task(**(wanted | {"hyperparameters": {"loss_type": "kto"}}))
    parameters = task.run.spec["parameters"]
    assert (parameters["method"], parameters["hyperparameters"]["loss_type"]) == ("lora", "kto")


def test_charlie_can_not_use_see_or_stop_what_is_alices(engine, asked, charlie, spooled):
    engine.will(runs_for_s=None)
    task = create_fine_tune_task(**asked)
    with pytest.raises(NotFound):
        access_fine_tune_task(charlie, task.pk)
    with pytest.raises(NotFound) as refusal:
        create_fine_tune_task(**(asked | {"actor": charlie}))
    assert refusal.value.field == "base_model"
    own = make_model_version(charlie)
    with pytest.raises(NotFound) as refusal:
        create_fine_tune_task(**(asked | {"actor": charlie, "base_model": own.pk}))
    assert refusal.value.field == "train_dataset"


def test_bob_sees_but_does_not_stop_the_task_of_alice(engine, asked, bob):
    engine.will(runs_for_s=None)
    task = access_fine_tune_task(bob, create_fine_tune_task(**asked).pk)
    with pytest.raises(Forbidden):
        stop_fine_tune_task(actor=bob, task=task)


def test_a_saved_task_starts_once(engine, asked):
    task = create_fine_tune_task(**asked, start=False)
    assert task.run is None
    start_fine_tune_task(actor=asked["actor"], task=task)
    with pytest.raises(Conflict, match="started before"):
        start_fine_tune_task(actor=asked["actor"], task=task)


def test_a_task_is_deleted_with_its_files_unless_it_runs_or_made_a_version(engine, asked):
    alice = asked["actor"]
    engine.will(runs_for_s=None)
    task = create_fine_tune_task(**asked)
    engine.step()
    task = access_fine_tune_task(alice, task.pk)
    with pytest.raises(Conflict, match="stop it first"):
        delete_fine_tune_task(actor=alice, task=task)
    stop_fine_tune_task(actor=alice, task=task)
    engine.step(2)
    place = run_folder(task.run.pk)
    assert place.exists()
    delete_fine_tune_task(actor=alice, task=access_fine_tune_task(alice, task.pk))
    assert not place.exists()
    assert not Run.objects.exists()

    engine.will(files=output_of())
    task = create_fine_tune_task(**asked)
    engine.step(2)
    task = access_fine_tune_task(alice, task.pk)
    with pytest.raises(Conflict, match="made the model version"):
        delete_fine_tune_task(actor=alice, task=task)
    delete_model_version(actor=alice, version=output_version(task))
    delete_fine_tune_task(actor=alice, task=task)


def test_a_manifest_that_the_domain_can_not_use_fails_the_run_in_words(engine, asked):
    engine.will(files=output_of({"format": "poem"}))
    task = create_fine_tune_task(**asked)
    engine.step(2)
    run = access_fine_tune_task(asked["actor"], task.pk).run
    assert (run.state, run.end_reason) == ("FAILED", "BAD_OUTPUT")
    assert "model or an adapter" in run.message
    assert_consistent()


def test_what_a_client_wrote_is_kept_word_for_word(engine, asked):
    wrote = {"createWay": "system", "rdma": "YES", "名称": "甲"}
    task = create_fine_tune_task(**asked, submitted=wrote, start=False)
    assert access_fine_tune_task(asked["actor"], task.pk).submitted == wrote
