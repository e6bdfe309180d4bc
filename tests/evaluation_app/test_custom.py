"""Evaluations by the user's own program."""

from __future__ import annotations

import pytest

from clavier.core.errors import Invalid, NotFound
from clavier.files.models import StoredFile
from evaluation_app.custom import create_custom_evaluation_task
from evaluation_app.models import EvaluationTask
from evaluation_app.services import access_evaluation_task, delete_evaluation_task
from tests.engine import assert_consistent, make_engine, make_real_engine
from tests.evaluation_app.test_results import OPENCOMPASS_CSV
from tests.worlds import make_dataset, make_model_version, put_tree

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files={"output/20231023/summary/summary.csv": OPENCOMPASS_CSV, "output/log.bin": "x"})
    return made


@pytest.fixture
def asked(alice, spooled):
    """The request of document 001, 6.3."""
    put_tree(alice, spooled, {"opencompass-0.1.2/run.py": "print(1)", "llama2-13b/config.json": "{}"})
    return {
        "actor": alice,
        "name": "evaluation-test",
        "command": "python3 run.py configs/eval_llama2_13b.py -w ${output_dir} --model_dir ${model_dir}",
        "code_folder": "private/opencompass-0.1.2",
        "model_folder": "private/llama2-13b",
        "output_folder": "private/opencompass-out",
    }


def test_results_are_taken_from_the_output_folder_and_its_files_published(engine, asked):
    task = create_custom_evaluation_task(**asked)
    engine.step(2)
    task = access_evaluation_task(asked["actor"], task.pk)
    assert task.run.state == "COMPLETED", task.run.message
    assert task.results["metrics"] == {"ceval/naive_average": 41.44, "piqa/accuracy": 78.45}
    assert task.results["sources"]["piqa/accuracy"] == "20231023/summary/summary.csv"
    assert task.results["files"] == 2
    assert StoredFile.objects.filter(path="opencompass-out/20231023/summary/summary.csv").exists()
    argv = task.run.run_spec().argv
    assert argv[:4] == ("python3", "run.py", "configs/eval_llama2_13b.py", "-w")
    assert argv[4].endswith(f"{task.run_id}/output")
    assert argv[6].endswith("private/llama2-13b")
    assert_consistent()


def test_broken_metrics_fail_the_evaluation_by_name(engine, asked):
    engine.will(files={"output/metrics.json": "{"})
    task = create_custom_evaluation_task(**asked)
    engine.step(2)
    run = access_evaluation_task(asked["actor"], task.pk).run
    assert (run.state, run.end_reason) == ("FAILED", "BAD_OUTPUT")
    assert "metrics.json" in run.message


def test_an_empty_output_fails_the_evaluation(engine, asked):
    engine.will(files={})
    task = create_custom_evaluation_task(**asked)
    engine.step(2)
    run = access_evaluation_task(asked["actor"], task.pk).run
    assert (run.end_reason, "outputDir" in run.message) == ("NO_OUTPUT", True)


def test_registered_versions_are_read_in_place_of_folders(engine, asked, alice, spooled):
    model, data = make_model_version(alice), make_dataset(alice, spooled)
    task = create_custom_evaluation_task(
        **asked | {"model_folder": "", "command": "x ${model_dir} ${input_dir}"},
        model_version=model.pk,
        dataset_version=data.pk,
    )
    assert task.run.run_spec().argv[1] == str(model.path)
    engine.step(2)
    delete_evaluation_task(actor=alice, task=access_evaluation_task(alice, task.pk))
    assert not EvaluationTask.objects.exists()


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"command": ""}, "required", "command"),
        ({"command": "x ${input_dir}"}, "unknown_placeholder", "command"),
        ({"command": "x ${config}"}, "unknown_placeholder", "command"),
        ({"environment": {"PATH": "/"}}, "reserved_name", "environment.PATH"),
        ({"name": ""}, "required", "name"),
    ],
)
def test_what_is_not_allowed_is_refused(engine, asked, change, code, field):
    with pytest.raises(Invalid) as refusal:
        create_custom_evaluation_task(**asked | change)
    assert (refusal.value.code, refusal.value.field) == (code, field)
    assert not EvaluationTask.objects.exists()


def test_a_folder_and_a_version_exclude_each_other(engine, asked, alice):
    with pytest.raises(Invalid, match="exclude each other"):
        create_custom_evaluation_task(**asked, model_version=make_model_version(alice).pk)


def test_charlie_can_not_evaluate_with_what_is_alices(engine, asked, charlie):
    with pytest.raises(NotFound):
        create_custom_evaluation_task(**asked | {"actor": charlie})
    task = create_custom_evaluation_task(**asked)
    with pytest.raises(NotFound):
        access_evaluation_task(charlie, task.pk)


def test_a_real_program_is_evaluated(monkeypatch, home, asked, alice, spooled):
    engine = make_real_engine(monkeypatch, home)
    script = "import json, sys\njson.dump({'accuracy': 0.75}, open(sys.argv[1] + '/metrics.json', 'w'))\n"
    put_tree(alice, spooled, {"opencompass-0.1.2/run.py": script})
    task = create_custom_evaluation_task(**asked | {"command": "python run.py ${output_dir}"})
    assert engine.finish(task.run).state == "COMPLETED"
    assert access_evaluation_task(alice, task.pk).results["metrics"] == {"accuracy": 0.75}
