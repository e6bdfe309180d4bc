"""What a program of the local executor is, sees and may do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runner.contract.run_spec import Limits, Mount, Resources
from runner.executors.base import ExecutorError, LaunchRefused
from runner.executors.control import Isolation
from runner.executors.launching import REPOSITORY, program_environment
from runner.executors.local_process import LocalProcessExecutor
from tests.runner.executors.bench import make_launch, wait_for, wait_until_exited
from tests.runner.executors.local_bench import (
    GRANDCHILD,
    SYSTEM_PYTHON,
    USER,
    alive_in,
    as_root,
    run,
    told,
    weaken,
)
from tests.runner.executors.warm_executor import MODULES, WarmExecutor


@pytest.fixture
def extra_group() -> Iterator[None]:
    """The platform itself is in a group more, which programs must not inherit."""
    before = os.getgroups()
    os.setgroups([*before, 4])
    yield
    os.setgroups(before)


@as_root
@pytest.mark.usefixtures("extra_group")
def test_a_program_has_a_user_of_its_own_and_no_power(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    source = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
keys = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
print(json.dumps({"ids": os.getresuid() + os.getresgid(), "groups": os.getgroups(),
                  **{key: int(status[key], 16) for key in keys}}))
"""
    power = told(executor, make_launch(tmp_path, "a", source))
    assert power.pop("NoNewPrivs") == 1
    assert power.pop("ids") == [USER] * 6
    assert power == {"groups": [], "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}


@as_root
def test_a_program_writes_in_its_own_folders_only(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    source = """
import json, os, sys
run, answers = os.path.dirname(os.getcwd()), {}
for name in ("output/x", "checkpoints/x", "work/x", "metrics.jsonl", "x", "log.txt", "result.json", "spec.json"):
    try:
        open(os.path.join(run, name), "a").close()
        answers[name] = True
    except OSError:
        answers[name] = False
try:
    os.rename(os.path.join(run, "metrics.jsonl"), os.path.join(run, "work/m"))
    answers["rename"] = True
except OSError:
    answers["rename"] = False
answers["reads"] = open(os.path.join(run, "spec.json")).read()
print(json.dumps(answers))
"""
    launch = make_launch(tmp_path, "a", source)
    (launch.run_folder / "spec.json").write_text("{}")
    (launch.run_folder / "spec.json").chmod(0o600)
    answers = told(executor, launch)
    assert answers.pop("reads") == "{}"
    allowed = {name for name, could in answers.items() if could}
    assert allowed == {"output/x", "checkpoints/x", "work/x", "metrics.jsonl"}
    assert (launch.run_folder / "result.json").stat().st_uid == 0


def test_a_program_sees_neither_other_processes_nor_hidden_folders(
    private: LocalProcessExecutor, local: type[LocalProcessExecutor], tmp_path: Path
) -> None:
    data = tmp_path / "runs"
    (data / "stranger").mkdir(parents=True)
    (data / "stranger/secret").write_text("secret")
    executor = local(tmp_path / "control", hidden=(data,))
    source = f"""
import json, os
print(json.dumps({{"data": os.listdir({str(data)!r}), "control": os.path.exists({str(tmp_path / "control/a")!r}),
                   "processes": [name for name in os.listdir("/proc") if name.isdigit()]}}))
"""
    view = told(executor, make_launch(tmp_path, "a", source))
    assert view["data"] == ["a"]
    assert view["control"] is False
    assert len(view["processes"]) == 2


@pytest.mark.parametrize(("kind", "needs_network", "has_others"), [("data", False, False), ("data", True, True),
                                                                   ("evaluation", False, True)])  # fmt: skip
def test_own_code_that_makes_data_has_a_loopback_of_its_own_and_no_network(
    private: LocalProcessExecutor, tmp_path: Path, kind: str, needs_network: bool, has_others: bool
) -> None:
    source = """
import json, os, socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
print(json.dumps({"network": os.readlink("/proc/self/ns/net"), "names": [name for _, name in socket.if_nameindex()]}))
"""
    launch = make_launch(tmp_path, "a", source)
    found = told(private, replace(launch, spec=replace(launch.spec, kind=kind, needs_network=needs_network)))
    assert (found["network"] == os.readlink("/proc/self/ns/net")) is has_others
    assert has_others or found["names"] == ["lo"]


def test_mounts_below_a_closed_folder_are_reached_and_only_writable_ones_written(
    private: LocalProcessExecutor, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    (closed / "model").mkdir(parents=True)
    (closed / "model/weights").write_text("w")
    (closed / "socket").mkdir()
    (closed / "file").write_text("f")
    (closed / "secret").write_text("s")
    closed.chmod(0o700)
    source = f"""
import json, os
os.chdir({str(closed)!r})
answers = {{"names": sorted(os.listdir()), "read": open("model/weights").read() + open("file").read()}}
open("socket/made", "w").close()
try:
    open("model/made", "w")
except OSError as error:
    answers["refused"] = error.errno
print(json.dumps(answers))
"""
    mounts = (Mount(f"{closed}/model"), Mount(f"{closed}/file"), Mount(f"{closed}/socket", writable=True))
    answers = told(private, make_launch(tmp_path, "a", source, mounts=mounts))
    assert answers == {"names": ["file", "model", "socket"], "read": "wf", "refused": 30}
    assert (closed / "socket/made").stat().st_uid == USER
    assert sorted(os.listdir(closed)) == ["file", "model", "secret", "socket"]


@as_root
def test_a_mounted_file_that_the_program_can_not_read_is_named(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("w")
    (model / "weights").chmod(0o600)
    with pytest.raises(LaunchRefused, match="model/weights can not be read"):
        executor.start(make_launch(tmp_path, "a", "pass", mounts=(Mount(str(model)),)))
    assert executor.list() == []


@as_root
@pytest.mark.parametrize("isolation", ["own_user", "platform_user"])
def test_weaker_isolations_work_and_root_is_said_in_the_log(
    executor: LocalProcessExecutor, open_folder: Path, isolation: Isolation
) -> None:
    weaken(executor, isolation)
    launch = make_launch(open_folder, "a", argv=(SYSTEM_PYTHON, "-c", "import os; print(os.getuid())" + GRANDCHILD))
    executor.start(launch)
    wait_for((launch.run_folder / "work/grandchild").exists, "the grandchild")
    executor.stop("a", 0)
    assert wait_until_exited(executor, "a").cause == "stopped"
    log = (launch.run_folder / "log.txt").read_text()
    assert (str(USER) in log.splitlines()) is (isolation == "own_user")
    assert ("not isolated: the program runs as root" in log) is (isolation == "platform_user")
    assert alive_in(launch.run_folder) == []


@as_root
def test_an_ordinary_user_can_run_the_executor(open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    script = f"""
import sys, time
sys.path.append({str(REPOSITORY)!r})
from pathlib import Path
from runner.contract.run_spec import RunSpec
from runner.executors.base import Launch
from runner.executors.local_process import LocalProcessExecutor
home = Path({str(home)!r})
(home / "run").mkdir()
executor = LocalProcessExecutor(home / "control", {SYSTEM_PYTHON!r})
spec = RunSpec("fine_tune", None, {{}}, argv=({SYSTEM_PYTHON!r}, "-c", "import os; print(os.getuid())"))
executor.start(Launch("a", home / "run", spec, 1, {{}}))
while executor.list()[0].state != "exited":
    time.sleep(0.02)
print(executor.isolation(), executor.list()[0].exit_code, (home / "run/log.txt").read_text())
"""
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
        timeout=60, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.split() == ["platform_user", "0", "65534"], done.stderr


@as_root
def test_without_a_private_view_a_closed_folder_is_named(executor: LocalProcessExecutor, open_folder: Path) -> None:
    weaken(executor, "own_user")
    launch = make_launch(open_folder, "a", argv=(SYSTEM_PYTHON, "-c", "pass"))
    (open_folder / "runs").chmod(0o700)
    with pytest.raises(ExecutorError, match=f"chmod o.x {open_folder}/runs"):
        executor.start(launch)
    assert executor.list() == []


@as_root
def test_a_program_can_not_have_more_threads_than_its_limit(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    source = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except BlockingIOError:
    pass
print(made)
"""
    # The kernel counts a user's threads on the whole host, so this tenant is in no other test.
    launch = replace(make_launch(tmp_path, "a", source, limits=Limits(max_processes=20)), owner_id=4711)
    assert told(executor, launch) == 19


def test_a_file_over_its_limit_ends_the_program(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    source = "open('big', 'wb').write(bytes(3 << 20))"
    ended, log = run(executor, make_launch(tmp_path, "a", source, limits=Limits(max_file_mib=1)))
    assert ended.exit_code == 128 + signal.SIGXFSZ or "File too large" in log
    assert (tmp_path / "runs/a/work/big").stat().st_size <= 1 << 20


def test_the_environment_of_a_program_has_no_secret_of_the_platform(
    local: type[LocalProcessExecutor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    monkeypatch.setenv("SECRET_KEY", "secret")
    executor = local(tmp_path / "control", environment={"FROM_OPERATOR": "1"})
    source = "import json, os; print(json.dumps(dict(os.environ)))"
    launch = make_launch(tmp_path, "a", source, environment={"OWN": "2"}, resources=Resources(cpu_milli=3500))
    environment = told(executor, launch)
    expected = program_environment(launch, sys.executable) | (MODULES if local is WarmExecutor else {})
    assert environment == {**expected, "FROM_OPERATOR": "1", "OWN": "2"} | {
        key: value for key, value in environment.items() if key == "LC_CTYPE"
    }
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == str(launch.run_folder / "work")


def test_the_network_and_gpus_open_only_what_they_need(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", "pass", resources=Resources(gpus=1), needs_network=True)
    environment = program_environment(replace(launch, gpus=("GPU-1", "GPU-2")), sys.executable)
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & set(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
