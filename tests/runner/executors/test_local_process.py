"""The local executor when its helpers die, its folders vanish, fill up or are prepared by an enemy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from runner.contract.run_spec import Resources, RunSpec
from runner.executors.base import ExecutorError, Launch, LaunchRefused
from runner.executors.control import Isolation
from runner.executors.local_process import LocalProcessExecutor
from tests.runner.executors.bench import COUNTED, make_launch, seen, wait_for, wait_until_exited
from tests.runner.executors.local_bench import (
    GRANDCHILD,
    ISOLATIONS,
    SYSTEM_PYTHON,
    alive_in,
    as_root,
    helpers_of,
    run,
    weaken,
)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_killed_wrapper_takes_every_process_with_it_and_the_attempt_is_lost(
    executor: LocalProcessExecutor, open_folder: Path, isolation: Isolation
) -> None:
    if isolation != executor.isolation():
        weaken(executor, isolation)
    launch = make_launch(open_folder, "a", argv=(SYSTEM_PYTHON, "-c", COUNTED + GRANDCHILD))
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
    executor: LocalProcessExecutor, open_folder: Path, isolation: Isolation
) -> None:
    if isolation != executor.isolation():
        weaken(executor, isolation)
    launch = make_launch(open_folder, "a", argv=(SYSTEM_PYTHON, "-c", GRANDCHILD))
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


def test_the_memory_of_all_processes_of_a_program_counts(executor: LocalProcessExecutor, tmp_path: Path) -> None:
    source = "import os, time\nif os.fork() == 0:\n  held = b'x' * (150 << 20)\ntime.sleep(600)"
    executor.start(make_launch(tmp_path, "a", source, resources=Resources(memory_mib=100)))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (137, "out_of_memory")


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


def test_a_log_over_its_cap_says_so_and_the_program_goes_on(local: type[LocalProcessExecutor], tmp_path: Path) -> None:
    executor = local(tmp_path / "control", max_log_mib=1)
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
