"""Bad input: programs of users that run and fail. The request is taken; how the run ends is judged."""

from __future__ import annotations

import os
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from clavier.files.services import upload_file
from clavier.quotas.models import Reservation
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import stop_run
from runner.contract import folder
from tests.cases.registry import ENGLISH, Later, Scene, case

EVALUATE, DETAIL = "/model/evaluation/task/create", "/model/evaluation/task/detail/"
OUTPUT = "os.environ['CLAVIER_OUTPUT_DIR']"
#: Case -> the script.
SCRIPTS = {
    "CMD-023": "raise ValueError('x')",
    "CMD-024": "held = b'x' * (2 << 30)",
    "CMD-026": "pass",
    "CMD-027": f"import os; open({OUTPUT} + '/metrics.json', 'w').write('{{')",
}
#: Each child stays, so the limit is met by forks and not by time.
FORK_BOMB = """
import os, time
while True:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
"""
CHATTY = f"""
import os
print("first")
for _ in range(64):
    print("y" * 65535)
open({OUTPUT} + "/metrics.json", "w").write('{{"accuracy": 1}}')
"""


def ended(scene: Scene, command: str, script: str = "", **fields: Any) -> tuple[Run, dict[str, Any]]:
    """The run of an evaluation by this program, when it has ended, and the detail of its evaluation."""
    engine = scene.engine()
    for waiting in Run.objects.filter(state="PENDING"):  # of the scene; they would train
        stop_run(run=waiting, actor_name="alice")
    if script:
        content = SimpleUploadedFile("x", script.encode())
        upload_file(actor=scene.alice, area="private", folder="code", name="look.py", upload=content, overwrite=True)
        fields["workDir"] = "/code"
    made = scene.post(EVALUATE, {"command": command, **fields})
    assert made.status_code == 200, made.json()
    run = engine.finish(Run.objects.get(subject_id=made.json()["data"]["id"]))
    assert not Reservation.objects.filter(released_at=None).exists()
    found = scene.client.get(DETAIL + made.json()["data"]["id"], **ENGLISH).json()["data"]
    return run, found


def failed(scene: Scene, command: str, script: str = "") -> Later:
    """The same for a program that must fail: what its evaluation says."""
    _, found = ended(scene, command, script)
    assert found["status"] == "Failed", found
    return Later(found["error"], found["message"])


def failing(script: str) -> Any:
    """Runs a script that fails."""
    return lambda scene: failed(scene, "python look.py", script)


for case_id, text in SCRIPTS.items():
    case(case_id)(failing(text))


@case("CMD-021")
def a_command_that_is_not_there(scene: Scene) -> Any:
    return failed(scene, "/nope")


@case("CMD-022")
def a_file_that_can_not_be_executed(scene: Scene) -> Any:
    return failed(scene, "/etc/passwd")


@case("CMD-028")
def a_fork_bomb(scene: Scene) -> Any:
    if os.geteuid() != 0:
        pytest.skip("without root all programs share one user, whose processes can not be counted apart")
    answer = failed(scene, "python look.py", FORK_BOMB)
    _, neighbour = ended(scene, "python look.py", CHATTY, name="neighbour")
    assert neighbour["status"] == "Succeeded", neighbour
    return answer


@case("CMD-030")
def more_log_than_there_is_room_for(scene: Scene) -> Any:
    """The log is bounded; the program goes on (decision 0008)."""
    make, engine = scene.engine, scene.engine()
    engine.executor._max_log_mib = 1
    scene.engine = lambda: engine
    run, found = ended(scene, "python look.py", CHATTY)
    scene.engine = make
    log = (run_folder(run.pk) / folder.LOG).read_text()
    assert found["status"] == "Succeeded", found
    assert len(log) < 2 << 20
    assert log.startswith("first\n")
    assert "the log is full (1 MiB)" in log
    return []
