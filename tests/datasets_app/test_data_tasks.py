"""Data tasks end to end: real runs that fetch, make and measure versions; the gate afterwards; who may what."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db.models import Model
from pytest_django import Settings

from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, InvalidFields, NotFound
from clavier.files.services import create_folder, upload_file
from clavier.files.storage import DiskChanges
from clavier.runs.models import Run
from datasets_app import intake
from datasets_app.derive import derive_version
from datasets_app.models import DatasetVersion, DataTask
from datasets_app.overlaps import measure_overlap, siblings_of
from datasets_app.plugins import create_plugin, delete_plugin, run_plugin
from datasets_app.preview import read_rows
from datasets_app.queries import versions_of
from datasets_app.services import create_dataset, delete_dataset, delete_version, upload_version
from datasets_app.tasks import access_data_task, delete_data_task, stop_data_task, tasks_of
from models_app.data_sources import fetch_version
from models_app.object_stores import create_object_store
from models_app.token_counts import count_tokens, lost_at
from runner.contract.folder import SPEC
from tests.conftest import left_behind
from tests.engine import make_engine, make_real_engine
from tests.object_stores import SECRET, fill, s3_server
from tests.programs.test_data_programs import web_server
from tests.programs.tiny_models import write_tiny_tokenizer
from tests.worlds import make_dataset, make_model_version

pytestmark = pytest.mark.django_db(transaction=True)
ROWS = b'{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n'
SCRIPT = b"""
import json, os, sys
with open(os.path.join(sys.argv[1], "rows.jsonl"), "w") as out:
    for number in range(int(os.environ["HP_ROWS"])):
        out.write(json.dumps({"question": f"{sys.argv[2]} {number}", "answer": "a"}) + "\\n")
    for line in open(os.path.join(sys.argv[3], "train", "train.jsonl")) if len(sys.argv) > 3 else ():
        out.write(line)
"""


@pytest.fixture
def web(settings: Settings) -> Iterator[str]:
    """A web server that the operator has allowed: /rows.jsonl is good, /bad.jsonl is not."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        body = ROWS if "rows" in request.path else b'{"question": "q"}\n'
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with web_server(answer) as place:
        settings.DATA_HOSTS_ALLOWED = [place]
        yield place


def taken_in(task: DataTask) -> DataTask:
    """The task after the gate, which the queue calls twice."""
    assert task.run
    for _ in range(2):
        intake.take_in(str(task.pk))
    task.refresh_from_db()
    return task


def test_a_file_of_the_web_becomes_the_next_version(
    alice: Actor, home: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, dataset = make_real_engine(monkeypatch, home), create_dataset(actor=alice, name="faq")
    location = f"{web}/rows.jsonl?signature=secret"
    task = fetch_version(actor=alice, dataset=dataset, source="url", location=location, purpose="sft", split="test")
    assert engine.finish(task.run).state == "COMPLETED", task.run.message
    task.refresh_from_db()
    assert task.state == "checking"
    version = taken_in(task).made_version
    assert (task.state, version.number, version.num_samples, version.kind) == ("done", 1, 2, "question_answer")
    assert (version.split, version.subset) == ("test", "Default")
    assert read_rows(version, 1, 1) == [{"question": "r", "answer": "b"}]
    assert version.steps[0]["location"] == f"{web}/rows.jsonl"
    assert not (home / "runs" / str(task.run_id) / "output").exists()
    refused = fetch_version(actor=alice, dataset=dataset, source="url", location=f"{web}/bad.jsonl", purpose="sft")
    engine.finish(refused.run)
    taken_in(refused)
    assert (refused.state, refused.made_version) == ("failed", None)
    assert "answer" in refused.result["problems"][0]["message"]
    private = fetch_version(actor=alice, dataset=dataset, source="url", location="https://127.0.0.1/x.jsonl")
    assert "is not public" in engine.finish(private.run).message
    private.refresh_from_db()
    assert private.state == "failed"
    assert versions_of(dataset).count() == 1
    before = len(left_behind(home / "datasets"))
    for done in tasks_of(alice, dataset=dataset.pk):
        delete_data_task(actor=alice, task=done)
    assert not Run.objects.exists()
    assert len(left_behind(home / "datasets")) == before


def test_a_file_of_an_object_store_becomes_a_version_and_the_secret_lies_nowhere(
    alice: Actor, home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine, dataset = make_real_engine(monkeypatch, home), create_dataset(actor=alice, name="faq")
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "rows.csv").write_text("question,answer\nq,a\n")
    with s3_server() as (endpoint, host):
        settings.OBJECT_STORE_HOSTS = [host]
        fill(endpoint, tmp_path / "lake", "team")
        create_object_store(actor=alice, name="lake", endpoint_url=endpoint, access_key="key", secret_key=SECRET)
        with pytest.raises(Invalid, match="no 'store/bucket/prefix'"):
            fetch_version(actor=alice, dataset=dataset, source="s3", location="none/models/rows.csv")
        task = fetch_version(actor=alice, dataset=dataset, source="s3", location="lake/models/team/rows.csv")
        run = engine.finish(task.run, 120)
    task.refresh_from_db()
    assert run.state == "COMPLETED", run.message
    assert taken_in(task).made_version.format == "csv"
    assert SECRET not in (home / "runs" / str(run.pk) / SPEC).read_text()
    assert not list((home / "secrets").iterdir())


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"source": "ftp"}, "not_a_choice"),
        ({"location": "https://user:word@host.example/x.jsonl"}, "bad_value"),
        ({"location": "file:///etc/passwd"}, "bad_value"),
        ({"location": "https://host.example/"}, "required"),
        ({"location": "https://host.example/x.exe"}, "not_a_choice"),
        ({"location": "https://host.example/x.jsonl", "purpose": "magic"}, "not_a_choice"),
        ({"location": "https://host.example/x", "file_name": "../x.jsonl"}, "bad_name"),
    ],
)
def test_what_can_not_be_fetched_is_refused_at_once(fields: dict[str, Any], code: str, alice: Actor) -> None:
    dataset = create_dataset(actor=alice, name="faq")
    with pytest.raises(Invalid) as refusal:
        fetch_version(actor=alice, dataset=dataset, **{"source": "url", "location": "x", **fields})
    assert refusal.value.code == code
    assert not DataTask.objects.exists()


def plugin_of(actor: Actor, **changes: Any) -> Any:
    """A script of the actor's files that makes rows."""
    create_folder(actor=actor, area="private", folder="", name="make")
    upload_file(actor=actor, area="private", folder="make", name="make.py", upload=SimpleUploadedFile("x", SCRIPT))
    columns: dict[str, Any] = {
        "name": "maker",
        "version": "1",
        "command": "python make.py ${output_dir} ${word}",
        "code_folder": "private/make",
        "parameters": [
            {"name": "rows", "type": "int", "default": 3},
            {"name": "word", "required": True, "choices": ["hello", "bye"]},
        ],
        "output_file": "rows.jsonl",
    }
    return create_plugin(actor=actor, **columns | changes)


def test_what_a_plugin_makes_becomes_a_version(
    alice: Actor, bob: Actor, home: Path, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, given = make_real_engine(monkeypatch, home), make_dataset(alice, spooled)
    plugin = plugin_of(alice, command="python make.py ${output_dir} ${word} ${input_dir}")
    asked = {"plugin": plugin.pk, "input_version": given.pk, "parameters": {"word": "hello", "rows": 2}}
    task = run_plugin(actor=alice, dataset=given.dataset, **asked)
    assert engine.finish(task.run).state == "COMPLETED", task.run.message
    task.refresh_from_db()
    version = taken_in(task).made_version
    assert (version.number, version.parent, version.num_samples) == (2, given, 2 + given.num_samples)
    assert read_rows(version, 0, 1) == [{"question": "hello 0", "answer": "a"}]
    assert version.steps[0]["parameters"] == {"word": "hello", "rows": "2"}
    with pytest.raises(Conflict, match="maker 1"):
        delete_plugin(actor=alice, plugin=plugin)
    with pytest.raises(Forbidden):
        run_plugin(actor=bob, dataset=given.dataset, **asked)
    missing = run_plugin(actor=alice, dataset=given.dataset, **asked | {"parameters": {"word": "bye", "rows": 0}})
    empty = engine.finish(missing.run)
    missing.refresh_from_db()
    assert (empty.state, taken_in(missing).state) == ("COMPLETED", "done"), "the input's rows alone"


def test_parameters_of_a_plugin_are_checked_all_at_once(alice: Actor, home: Path) -> None:
    plugin, dataset = plugin_of(alice), create_dataset(actor=alice, name="faq")
    with pytest.raises(InvalidFields) as refusal:
        run_plugin(actor=alice, dataset=dataset, plugin=plugin.pk, parameters={"rows": "many", "colour": 1})
    problems = {problem.field: problem.code for problem in refusal.value.problems}
    assert problems == {
        "parameters.colour": "unknown_field",
        "parameters.rows": "wrong_type",
        "parameters.word": "required",
    }
    with pytest.raises(InvalidFields, match="none of hello, bye"):
        run_plugin(actor=alice, dataset=dataset, plugin=plugin.pk, parameters={"word": "no"})
    with pytest.raises(Conflict, match="Register another version"):
        create_plugin(actor=alice, name="maker", version="1", command="true")


def test_the_parameter_string_of_document_000_is_read_and_checked_as_an_object_is(
    alice: Actor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_real_engine(monkeypatch, home)
    plugin, dataset = plugin_of(alice), create_dataset(actor=alice, name="faq")
    task = run_plugin(actor=alice, dataset=dataset, plugin=plugin.pk, parameters="{'word': 'hello', 'rows': 2}")
    assert task.request["parameters"] == {"word": "hello", "rows": "2"}
    with pytest.raises(InvalidFields) as refusal:
        run_plugin(actor=alice, dataset=dataset, plugin=plugin.pk, parameters="{'rows': 'many', 'colour': 1}")
    assert {problem.code for problem in refusal.value.problems} == {"unknown_field", "wrong_type", "required"}
    with pytest.raises(Invalid, match="character 34 of line 1") as broken:
        run_plugin(
            actor=alice, dataset=dataset, plugin=plugin.pk, parameters="{'params1': 'value1', 'params2': 'value2}"
        )
    assert (broken.value.code, broken.value.field) == ("bad_literal", "parameters")


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": [{"name": "a b"}]},
        {"parameters": [{"name": "a", "type": "date"}]},
        {"parameters": [{"name": "a", "type": ["int"]}]},
        {"parameters": 5},
        {"parameters": [{"name": "a", "type": "int", "default": "x"}]},
        {"parameters": [{"name": "a", "colour": 1}]},
        {"output_file": "../rows.jsonl"},
        {"output_file": "rows.exe"},
        {"command": "true | false"},
        {"command": "true ${unknown}"},
        {"name": ""},
        {"code_folder": "private/none"},
    ],
)
def test_a_plugin_that_makes_no_sense_is_refused(changes: dict[str, Any], alice: Actor) -> None:
    with pytest.raises((Invalid, NotFound)):
        create_plugin(actor=alice, **{"name": "maker", "version": "1", "command": "true", **changes})


def test_tokens_are_counted_once_for_a_version_and_a_model(
    alice: Actor, home: Path, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, version, model = (
        make_real_engine(monkeypatch, home),
        make_dataset(alice, spooled),
        make_model_version(alice),
    )
    write_tiny_tokenizer(model.path)
    task = count_tokens(actor=alice, version=version, model_version=model.pk, max_length=20)
    assert engine.finish(task.run, 120).state == "COMPLETED", task.run.message
    task.refresh_from_db()
    assert (task.state, task.result["samples"], task.result["path"]) == ("done", 5, "fast")
    assert lost_at(task, 20) == next(item for item in task.result["at"] if item["max_length"] == 20)
    assert lost_at(task, task.result["longest"])["longer"] == 0
    assert lost_at(task, 3)["lost_truncate"] == 1
    again = count_tokens(actor=alice, version=version, model_version=model.pk)
    assert again == task


def test_splits_that_were_made_together_are_compared(
    alice: Actor, home: Path, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_real_engine(monkeypatch, home)
    train = make_dataset(
        alice, spooled, [{"question": "How old is it?", "answer": "5"}, {"question": "b", "answer": "c"}]
    )
    test = make_dataset(alice, spooled, [{"question": "how OLD is it", "answer": "five"}], name="test")
    together: dict[str, Any] = {"parent": make_dataset(alice, spooled, name="all"), "dataset": train.dataset}
    DatasetVersion.objects.filter(pk=train.pk).update(split="train", **together)
    DatasetVersion.objects.filter(pk=test.pk).update(split="test", number=2, **together)
    test.refresh_from_db()
    task = measure_overlap(actor=alice, version=test)
    assert engine.finish(task.run, 120).state == "COMPLETED", task.run.message
    task.refresh_from_db()
    assert [item["label"] for item in task.result["sets"]] == ["faq v1 train"]
    assert (task.result["sets"][0]["exact"], task.result["within"]["near"]) == (1, 0)
    assert siblings_of(test) == [train]
    for bad in ({"against": [test.pk]}, {"threshold": 0.1}):
        with pytest.raises(Invalid):
            measure_overlap(actor=alice, version=test, **bad)


def test_splits_that_were_uploaded_apart_are_compared_within_their_subset(
    alice: Actor, home: Path, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(monkeypatch)
    dataset = create_dataset(actor=alice, name="parts")

    def put(split: str, subset: str = "") -> DatasetVersion:
        upload = spooled(b'{"question": "a", "answer": "b"}\n')
        return upload_version(
            actor=alice, dataset=dataset, upload=upload, file_name="a.jsonl", split=split, subset=subset
        )

    train, _, none = put("train"), put("test"), put("")
    test, english, validation = put("test"), put("train", "English"), put("validation")
    assert (train.subset, english.subset, none.split) == ("Default", "English", "")
    assert siblings_of(train) == [test, validation]
    assert siblings_of(validation) == [train, test]
    assert siblings_of(english) == siblings_of(none) == []
    task = measure_overlap(actor=alice, version=train)
    assert [item["label"] for item in task.request["against"]] == ["parts v4 test", "parts v6 validation"]
    for bad in ({"split": "dev"}, {"subset": "a/b"}, {"subset": "x" * 101}):
        with pytest.raises(Invalid) as refused:
            put(**{"split": "", **bad})
        assert refused.value.field == next(iter(bad))
    made = derive_version(actor=alice, version=english, steps=[{"step": "rename", "mapping": {"prompt": "question"}}])
    assert (made.split, made.subset) == ("train", "English")


def test_charlie_and_a_viewer_start_and_see_nothing(alice: Actor, charlie: Actor, home: Path, spooled: Any) -> None:
    version, model, plugin = make_dataset(alice, spooled), make_model_version(alice), plugin_of(alice)
    theirs = make_dataset(charlie, spooled)
    calls = {
        "fetch": lambda who: fetch_version(
            actor=who, dataset=version.dataset, source="url", location="https://host.example/a.jsonl"
        ),
        "plugin": lambda who: run_plugin(actor=who, dataset=version.dataset, plugin=plugin.pk, parameters={}),
        "tokens": lambda who: count_tokens(actor=who, version=version, model_version=model.pk),
        "overlap": lambda who: measure_overlap(actor=who, version=version),
        "their plugin": lambda who: run_plugin(actor=who, dataset=theirs.dataset, plugin=plugin.pk),
        "their data": lambda who: measure_overlap(actor=who, version=theirs, against=[version.pk]),
    }
    for name, call in calls.items():
        with pytest.raises(NotFound):
            call(charlie)
        if not name.startswith("their"):
            with pytest.raises(Forbidden):
                call(dataclasses.replace(alice, role="viewer"))
    assert not DataTask.objects.exists()


def test_a_data_set_whose_task_runs_stays_until_it_is_stopped(
    alice: Actor, home: Path, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(monkeypatch)
    version = make_dataset(alice, spooled)
    task = measure_overlap(actor=alice, version=version)
    for call in (
        lambda: delete_version(actor=alice, version=version),
        lambda: delete_dataset(actor=alice, dataset=version.dataset),
        lambda: delete_data_task(actor=alice, task=task),
    ):
        with pytest.raises(Conflict, match="stop it first"):
            call()
    stop_data_task(actor=alice, task=task)
    assert access_data_task(alice, task.pk).state == "failed"
    with pytest.raises(Conflict):
        stop_data_task(actor=alice, task=access_data_task(alice, task.pk))
    delete_dataset(actor=alice, dataset=version.dataset)
    assert not Run.objects.exists()
    assert left_behind(home / "datasets") == []


def test_a_disk_that_fails_leaves_the_file_for_the_next_sweep(
    alice: Actor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, dataset = make_engine(monkeypatch), create_dataset(actor=alice, name="faq")
    manifest = json.dumps({"files": [{"path": "a.jsonl", "size": len(ROWS)}], "kind": "data", "facts": {}})
    engine.will(files={"output/a.jsonl": ROWS.decode(), "output/MANIFEST.json": manifest})
    task = fetch_version(actor=alice, dataset=dataset, source="url", location="https://host.example/a.jsonl")
    engine.step(2)
    with monkeypatch.context() as broken:
        broken.setattr(DiskChanges, "place", lambda *args: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            intake.take_in(str(task.pk))
    task.refresh_from_db()
    assert (task.state, task.claimed_at) == ("checking", None)
    woken: list[Model] = []
    monkeypatch.setattr(intake, "wake", woken.append)
    intake.wake_waiting()
    assert woken == [task]
    assert taken_in(task).state == "done"
    intake.wake_waiting()
    assert woken == [task]
