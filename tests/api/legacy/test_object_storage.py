"""Data and models of tasks in an object store: storageMedium 1203, from an S3 server to the script's eyes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.core.actor import Actor
from clavier.files.usage import set_storage_limits
from clavier.runs.models import Run
from clavier.runs.outputs import read_log, read_metrics
from models_app.object_stores import create_object_store
from tests.api.conftest import client_of
from tests.api.legacy.conftest import ENGLISH, failure, payload
from tests.engine import RealEngine, make_real_engine
from tests.object_stores import SECRET, fill, s3_server
from tests.worlds import put_tree

TUNE, EVALUATE = "/kernel/fineTune/createLlmFineTuneTask", "/model/evaluation/task/create"
DETAIL = "/kernel/fineTune/queryLlmFineTuneTaskDetail"
#: Copies what it was given into its output.
SCRIPT = """
import os, pathlib, sys
model, data = map(pathlib.Path, sys.argv[1:3])
seen = [str(path.relative_to(data)) for path in sorted(data.rglob("*")) if path.is_file()]
print((model / "config.json").read_text(), seen, os.access(data / "train/a.jsonl", os.W_OK))
print([name for name in os.environ if "SECRET" in name or "KEY" in name])
pathlib.Path(os.environ["CLAVIER_OUTPUT_DIR"], "metrics.json").write_text('{"accuracy": 1.0}')
"""

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An S3 server with a data folder and a model, and its host."""
    folder: Path = tmp_path_factory.mktemp("lake")
    for path in ("data/train/a.jsonl", "data/validate/b.jsonl", "data/test/sub/c.jsonl", "base/config.json",
                 "flat/a.jsonl"):  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f'{{"from": "{path}"}}')
    with s3_server() as (endpoint, host):
        fill(endpoint, folder, "team")
        yield endpoint, host


@pytest.fixture
def engine(
    lake: tuple[str, str], alice: Actor, spooled: Any, monkeypatch: pytest.MonkeyPatch, home: Path, settings: Any
) -> RealEngine:
    """Real processes; Alice has a script, and the store under the name ``lake``."""
    endpoint, settings.OBJECT_STORE_HOSTS = lake[0], [lake[1]]
    create_object_store(actor=alice, name="lake", endpoint_url=endpoint, access_key="key", secret_key=SECRET)
    put_tree(alice, spooled, {"code/look.py": SCRIPT})
    return make_real_engine(monkeypatch, home)


def ask(user: User, route: str, **changes: Any) -> Any:
    """A request for Alice's script with data and model in the store."""
    folder = "workingDir" if route == TUNE else "workDir"
    model = "originModelDir" if route == TUNE else "modelDir"
    body: dict[str, Any] = {
        "name": "stored", "image": "platform", "command": "python look.py ${model_dir} ${input_dir}",
        "outputDir": "/out", "storageMedium": "1203", "inputDir": "lake/models/team/data",
        model: "s3://lake/models/team/base", folder: "/code", **changes,
    }  # fmt: skip
    body |= {"createWay": "custom"} if route == TUNE else {"resource": {"cpuNumber": 1, "memory": 1}}
    return client_of(user).post(route, body, format="json", **ENGLISH)


@pytest.mark.parametrize("route", [TUNE, EVALUATE])
def test_a_task_reads_what_a_run_before_it_has_fetched(
    engine: RealEngine, alice_user: User, home: Path, route: str
) -> None:
    made = payload(ask(alice_user, route))
    fetched = engine.finish(Run.objects.get(), 120)
    assert fetched.state == "COMPLETED", (fetched.message, read_log(fetched.pk).data)
    assert "progress" in {event["kind"] for event in read_metrics(fetched.pk)[0]}
    assert not list((home / "secrets").iterdir())
    own = engine.finish(Run.objects.exclude(pk=fetched.pk).get(subject_id=made["id"]))
    log = read_log(own.pk).data
    assert own.state == "COMPLETED", (own.message, log)
    text = log.decode() if isinstance(log, bytes) else log
    assert "base/config.json" in text
    assert "['test/sub/c.jsonl', 'train/a.jsonl', 'validate/b.jsonl'] False\n[]" in text
    assert (own.spec["mounts"], own.spec["needs_network"]) == (
        [{"source": f"{home}/runs/{fetched.pk}/output/{name}", "target": "", "writable": False}
         for name in ("data_folder", "model_folder")],
        False,
    )  # fmt: skip
    for written in [*(home / "runs").rglob("*.json"), *(home / "runs").rglob("log*.txt")]:
        assert SECRET not in written.read_text()


def test_what_can_not_be_fetched_fails_before_the_script_starts(engine: RealEngine, alice_user: User) -> None:
    tenant_id = alice_user.memberships.get().tenant_id
    for place, word in (("flat", "must hold the folders"), ("none", "nothing below"), ("data", "0 are allowed")):
        if place == "data":
            set_storage_limits(tenant_id=tenant_id, user_id=alice_user.pk, bytes_limit=0)
        made = payload(ask(alice_user, TUNE, name=place, inputDir=f"lake/models/team/{place}"))
        run = engine.finish(Run.objects.get(subject_id=made["id"]), 120)
        assert (run.state, word in run.message) == ("FAILED", True), run.message
        assert Run.objects.filter(subject_id=made["id"]).count() == 1
        assert payload(client_of(alice_user).post(f"{DETAIL}?taskId={made['id']}"))["status"] == "Failed"


@pytest.mark.parametrize(
    ("change", "status", "error", "field"),
    [
        ({"inputDir": ""}, 400, "required", "inputDir"),
        ({"inputDir": "nobody/models/x"}, 400, "bad_value", "inputDir"),
        ({"inputDir": "lake/models/../x"}, 400, "bad_value", "inputDir"),
        ({"storageMedium": "1201", "inputDir": "s3://lake/models/x"}, 400, "conflicting_fields", "storageMedium"),
        ({"workingDir": "s3://lake/models/x"}, 404, "not_found", "workingDir"),
    ],
)
def test_a_place_in_no_store_is_named(
    engine: RealEngine, alice_user: User, change: dict[str, Any], status: int, error: str, field: str
) -> None:
    failure(ask(alice_user, TUNE, **change), status, error, field)
    assert not Run.objects.exists()


def test_charlie_can_not_read_the_store_of_alice(engine: RealEngine, charlie_client: APIClient) -> None:
    body = {"name": "x", "createWay": "custom", "command": "true", "inputDir": "s3://lake/models/team/data"}
    failure(charlie_client.post(TUNE, body, format="json"), 400, "bad_value", "inputDir")
