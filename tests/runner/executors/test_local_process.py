"""What only the local executor does: users of their own, a private view, crashes of its helpers, hostile folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.contract.run_spec import Limits, Mount, Resources, RunSpec
from runner.executors.base import ExecutorError, Launch, LaunchRefused, Observation
from runner.executors.control import Isolation
from runner.executors.launching import REPOSITORY, program_environment
from runner.executors.local_process import LocalProcessExecutor
from tests.runner.executors.bench import COUNTED, make_launch, seen, wait_for, wait_until_exited

USER = 200_007
SYSTEM_PYTHON = "/usr/bin/python3"
GRANDCHILD = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("grandchild", "w").write("up")
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
ISOLATIONS: list[Isolation] = ["platform_user"]
if os.geteuid() == 0:
    ISOLATIONS += ["own_user", "private_namespaces"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give programs a user of their own")


@pytest.fixture
def executor(tmp_path: Path) -> LocalProcessExecutor:
    return LocalProcessExecutor(tmp_path / "control")


@pytest.fixture
def private(executor: LocalProcessExecutor) -> LocalProcessExecutor:
    if executor.isolation() != "private_namespaces":
        pytest.skip("this host allows no private namespaces")
    return executor


def run(executor: LocalProcessExecutor, launch: Launch) -> tuple[Observation, str]:
    """The end of an attempt and its log."""
    executor.start(launch)
    ended = wait_until_exited(executor, launch.name)
    return ended, (launch.run_folder / "log.txt").read_text()


def told(executor: LocalProcessExecutor, launch: Launch) -> Any:
    """The JSON which the program of a launch printed."""
    ended, log = run(executor, launch)
    assert ended.exit_code == 0, log
    return json.loads(log)


def helpers_of(executor: LocalProcessExecutor, name: str) -> tuple[int, int]:
    """Process ids of an attempt's wrapper and of its keeper."""
    started = json.loads((executor._control / name / "started.json").read_text())
    wrapper = int(started["wrapper"])
    keeper = int(Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text().split()[0])
    return wrapper, keeper


def weaken(executor: LocalProcessExecutor, isolation: Isolation, folder: Path) -> None:
    """Have the executor do without private namespaces; then pytest's closed folders must be open."""
    if isolation == "private_namespaces":
        pytest.skip("this host allows no private namespaces")
    executor._isolation = isolation
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o755)


def alive_in(folder: Path) -> list[str]:
    """Command lines of processes whose current folder is below this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd").startswith(str(folder)):
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


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
    private: LocalProcessExecutor, tmp_path: Path
) -> None:
    data = tmp_path / "runs"
    (data / "stranger").mkdir(parents=True)
    (data / "stranger/secret").write_text("secret")
    executor = LocalProcessExecutor(tmp_path / "control", hidden=(data,))
    source = f"""
import json, os
print(json.dumps({{"data": os.listdir({str(data)!r}), "control": os.path.exists({str(tmp_path / "control/a")!r}),
                   "processes": [name for name in os.listdir("/proc") if name.isdigit()]}}))
"""
    view = told(executor, make_launch(tmp_path, "a", source))
    assert view["data"] == ["a"]
    assert view["control"] is False
    assert len(view["processes"]) == 2


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
    executor: LocalProcessExecutor, tmp_path: Path, isolation: Isolation
) -> None:
    weaken(executor, isolation, tmp_path)
    launch = make_launch(tmp_path, "a", argv=(SYSTEM_PYTHON, "-c", "import os; print(os.getuid())" + GRANDCHILD))
    executor.start(launch)
    wait_for((launch.run_folder / "work/grandchild").exists, "the grandchild")
    executor.stop("a", 0)
    assert wait_until_exited(executor, "a").cause == "stopped"
    log = (launch.run_folder / "log.txt").read_text()
    assert (str(USER) in log.splitlines()) is (isolation == "own_user")
    assert ("not isolated: the program runs as root" in log) is (isolation == "platform_user")
    assert alive_in(launch.run_folder) == []


@as_root
def test_an_ordinary_user_can_run_the_executor(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    home = tmp_path / "home"
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
def test_without_a_private_view_a_closed_folder_is_named(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    weaken(executor, "own_user", tmp_path)
    launch = make_launch(tmp_path, "a", argv=(SYSTEM_PYTHON, "-c", "pass"))
    (tmp_path / "runs").chmod(0o700)
    with pytest.raises(ExecutorError, match=f"chmod o.x {tmp_path}/runs"):
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
    made = told(executor, make_launch(tmp_path, "a", source, limits=Limits(max_processes=20)))
    assert made == 19


def test_a_file_over_its_limit_ends_the_program(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    source = "open('big', 'wb').write(bytes(3 << 20))"
    ended, log = run(executor, make_launch(tmp_path, "a", source, limits=Limits(max_file_mib=1)))
    assert ended.exit_code == 128 + signal.SIGXFSZ or "File too large" in log
    assert (tmp_path / "runs/a/work/big").stat().st_size <= 1 << 20


def test_the_environment_of_a_program_has_no_secret_of_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    monkeypatch.setenv("SECRET_KEY", "secret")
    executor = LocalProcessExecutor(tmp_path / "control", environment={"FROM_OPERATOR": "1"})
    source = "import json, os; print(json.dumps(dict(os.environ)))"
    launch = make_launch(tmp_path, "a", source, environment={"OWN": "2"}, resources=Resources(cpu_milli=3500))
    environment = told(executor, launch)
    expected = program_environment(launch.spec, str(launch.run_folder), sys.executable)
    assert environment == {**expected, "FROM_OPERATOR": "1", "OWN": "2"} | {
        key: value for key, value in environment.items() if key == "LC_CTYPE"
    }
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == str(launch.run_folder / "work")


def test_the_network_and_gpus_open_only_what_they_need() -> None:
    spec = RunSpec("fine_tune", None, {}, argv=("x",), resources=Resources(gpus=1), needs_network=True)
    environment = program_environment(spec, "/run-folder", sys.executable)
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES"} & set(environment)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_killed_wrapper_takes_every_process_with_it_and_the_attempt_is_lost(
    executor: LocalProcessExecutor, tmp_path: Path, isolation: Isolation
) -> None:
    if isolation != executor.isolation():
        weaken(executor, isolation, tmp_path)
    launch = make_launch(tmp_path, "a", argv=(SYSTEM_PYTHON, "-c", COUNTED + GRANDCHILD))
    executor.start(launch)
    wait_for((launch.run_folder / "work/grandchild").exists, "the grandchild")
    assert len(alive_in(launch.run_folder)) == 2
    os.kill(helpers_of(executor, "a")[0], signal.SIGKILL)
    ended = wait_until_exited(executor, "a")
    assert alive_in(launch.run_folder) == []
    assert (ended.exit_code, ended.cause) == (None, "lost")
    executor.start(launch)
    assert seen(executor, "a") == ended
    assert (launch.run_folder / "work/starts").read_text() == "started\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_killed_keeper_takes_every_process_with_it_and_the_attempt_is_lost(
    executor: LocalProcessExecutor, tmp_path: Path, isolation: Isolation
) -> None:
    if isolation != executor.isolation():
        weaken(executor, isolation, tmp_path)
    launch = make_launch(tmp_path, "a", argv=(SYSTEM_PYTHON, "-c", GRANDCHILD))
    executor.start(launch)
    wait_for((launch.run_folder / "work/grandchild").exists, "the grandchild")
    os.kill(helpers_of(executor, "a")[1], signal.SIGKILL)
    ended = wait_until_exited(executor, "a")
    assert alive_in(launch.run_folder) == []
    assert (ended.exit_code, ended.cause) == (None, "lost")
    assert json.loads((launch.run_folder / "result.json").read_text())["cause"] == "lost"


def test_the_helpers_ignore_polite_signals_and_belong_to_nobody(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", "import time; print('up', flush=True); time.sleep(600)")
    executor.start(launch)
    wait_for(lambda: "up" in (launch.run_folder / "log.txt").read_text(), "the program")
    helpers = helpers_of(executor, "a")
    for pid in helpers:
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        assert int(status[3]) != os.getsid(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    assert f"PPid:\t{os.getpid()}\n" not in Path(f"/proc/{helpers[0]}/status").read_text()
    executor.stop("a", 5)
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (143, "stopped")


def test_after_a_reboot_a_running_attempt_is_lost(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    executor.start(make_launch(tmp_path, "a", "import time; time.sleep(600)"))
    path = tmp_path / "control/a/started.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another boot"}))
    observation = seen(executor, "a")
    assert observation is not None
    assert (observation.state, observation.cause) == ("exited", "lost")


def test_an_intent_without_a_wrapper_is_starting_and_can_be_started(
    executor: LocalProcessExecutor, tmp_path: Path
) -> None:
    launch = make_launch(tmp_path, "a", COUNTED)
    executor._write_intent(tmp_path / "control/a", launch)
    observation = seen(executor, "a")
    assert observation is not None
    assert observation.state == "starting"
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0


def test_a_wrapper_that_comes_late_starts_nothing(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", COUNTED)
    executor.start(launch)
    ended = wait_until_exited(executor, "a")
    executor._spawn_wrapper(tmp_path / "control/a")
    (tmp_path / "control/a/result.json").unlink()
    executor._spawn_wrapper(tmp_path / "control/a")
    assert seen(executor, "a") == ended
    assert (launch.run_folder / "work/starts").read_text() == "started\n"


def test_a_stop_before_the_start_means_it_never_starts(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", COUNTED)
    executor._write_intent(tmp_path / "control/a", launch)
    executor.stop("a", 5)
    executor.start(launch)
    ended = wait_until_exited(executor, "a")
    assert (ended.cause, ended.exit_code, ended.started_at) == ("stopped", None, None)
    assert not (launch.run_folder / "work/starts").exists()


def test_a_removed_control_folder_ends_the_program(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", GRANDCHILD)
    executor.start(launch)
    wait_for((launch.run_folder / "work/grandchild").exists, "the grandchild")
    (tmp_path / "control/a").rename(tmp_path / "elsewhere")
    wait_for((launch.run_folder / "result.json").exists, "the result")
    assert json.loads((launch.run_folder / "result.json").read_text())["cause"] == "lost"
    assert alive_in(launch.run_folder) == []


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_planted_names_in_the_run_folder_lead_nowhere(
    executor: LocalProcessExecutor, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    mode = victim.stat().st_mode
    launch = make_launch(tmp_path, "a", "print('hello')")
    for name in ("log.txt", "metrics.jsonl", "result.json"):
        path = launch.run_folder / name
        if kind == "symlink":
            path.symlink_to(victim)
        elif kind == "hard link":
            path.hardlink_to(victim)
        else:
            os.mkfifo(path)
    ended, log = run(executor, launch)
    assert (ended.exit_code, log) == (0, "hello\n")
    assert (victim.read_text(), victim.stat().st_uid, victim.stat().st_mode) == ("untouched", os.geteuid(), mode)
    assert (launch.run_folder / "metrics.jsonl").is_file()
    assert not (launch.run_folder / "metrics.jsonl").is_symlink()
    assert json.loads((launch.run_folder / "result.json").read_text())["attempt"] == "a"


def test_an_output_folder_that_is_a_symlink_starts_nothing(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", COUNTED)
    (launch.run_folder / "output").symlink_to("/etc")
    owner = os.stat("/etc").st_uid
    with pytest.raises(ExecutorError, match="output"):
        executor.start(launch)
    assert os.stat("/etc").st_uid == owner
    (launch.run_folder / "output").unlink()
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0


def test_the_ready_file_of_an_earlier_attempt_is_gone(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", "import os; print(os.path.exists('ready.json'))")
    (launch.run_folder / "work").mkdir()
    (launch.run_folder / "work/ready.json").write_text("{}")
    assert run(executor, launch)[1] == "False\n"


def test_a_log_over_its_cap_says_so_and_the_program_goes_on(tmp_path: Path) -> None:
    executor = LocalProcessExecutor(tmp_path / "control", max_log_mib=1)
    launch = make_launch(tmp_path, "a", "print('x' * (3 << 20)); print('end')")
    ended, log = run(executor, launch)
    assert ended.exit_code == 0
    assert log == "x" * (1 << 20) + "\n[clavier] the log is full (1 MiB); what follows is dropped\n"
    assert json.loads((launch.run_folder / "result.json").read_text())["log_truncated"] is True


@as_root
def test_a_full_disk_costs_the_log_but_neither_the_program_nor_its_result(
    executor: LocalProcessExecutor, tmp_path: Path
) -> None:
    launch = make_launch(tmp_path, "a", "print('x' * (3 << 20)); raise SystemExit(5)")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", launch.run_folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("this host allows no mounts")
    try:
        ended, _ = run(executor, launch)
        result = json.loads((launch.run_folder / "result.json").read_text())
        assert (ended.exit_code, result["exit_code"], result["log_truncated"]) == (5, 5, True)
    finally:
        subprocess.run(["umount", "-l", launch.run_folder], check=True)


def test_a_platform_program_is_found_or_refused_before_anything_is_made(
    executor: LocalProcessExecutor, tmp_path: Path
) -> None:
    launch = make_launch(tmp_path, "a")
    for program in ("runner.programs.nothing_here", "os", "runner.programs..x", "runner.programs.lib/../../x"):
        spec = RunSpec("fine_tune", program, {})
        with pytest.raises(LaunchRefused, match=r"does not exist below runner\.programs"):
            executor.start(Launch("a", launch.run_folder, spec, 7, {}))
    assert executor.list() == []
