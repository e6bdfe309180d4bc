"""What every executor must do. New executors join through ``bench.FACTORIES``."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from runner.contract.run_spec import Limits, Resources
from runner.executors.base import ExecutorError, Launch, LaunchRefused
from runner.executors.fake import Outcome
from tests.runner.executors.bench import COUNTED, Bench, make_launch, seen, wait_for, wait_until_exited

RACERS = 8
ROUNDS = 3
FOREVER = Outcome(runs_for_s=None)
SLEEP = COUNTED + "import time; time.sleep(600)"
IGNORE_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n" + SLEEP
forking = multiprocessing.get_context("fork")


def test_an_empty_executor_lists_nothing(bench: Bench) -> None:
    assert bench.executor().list() == []


@pytest.mark.parametrize("exit_code", [0, 64])
def test_the_exit_code_of_the_program_is_observed(bench: Bench, tmp_path: Path, exit_code: int) -> None:
    bench.script("a", Outcome(exit_code=exit_code))
    launch = make_launch(tmp_path, "a", f"raise SystemExit({exit_code})")
    executor = bench.executor()
    before = time.time()
    executor.start(launch)
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause, ended.spec_digest) == (exit_code, "exit", launch.spec.digest())
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert before - 1 <= ended.started_at <= ended.ended_at <= time.time() + 1
    result = json.loads((launch.run_folder / "result.json").read_text())
    assert (result["attempt"], result["exit_code"], result["cause"]) == ("a", exit_code, "exit")
    assert result["spec_digest"] == launch.spec.digest()


def test_a_running_attempt_is_listed_as_running_by_every_executor_of_this_host(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", FOREVER)
    bench.executor().start(make_launch(tmp_path, "a", SLEEP))
    observation = seen(bench.executor(), "a")
    assert observation is not None
    assert (observation.state, observation.exit_code, observation.cause) == ("running", None, None)


def test_a_second_start_adopts_the_first(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", FOREVER)
    launch = make_launch(tmp_path, "a", SLEEP)
    for _ in range(3):
        bench.executor().start(launch)
    wait_for(lambda: bench.starts(launch), "the program to count itself")
    assert bench.starts(launch) == 1
    assert len(bench.executor().list()) == 1


def test_an_exited_attempt_is_never_started_again(bench: Bench, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", COUNTED)
    executor = bench.executor()
    executor.start(launch)
    first = wait_until_exited(executor, "a")
    executor.start(launch)
    assert wait_until_exited(executor, "a") == first
    executor.remove("a")
    with pytest.raises(LaunchRefused, match="ended"):
        executor.start(launch)
    assert bench.starts(launch) == 1


def test_a_name_can_not_be_used_for_other_work(bench: Bench, tmp_path: Path) -> None:
    executor = bench.executor()
    executor.start(make_launch(tmp_path, "a", "pass"))
    with pytest.raises(LaunchRefused, match="other work"):
        executor.start(make_launch(tmp_path, "a", "print('something else')"))


def test_eight_racing_starters_start_exactly_one_program(bench: Bench, tmp_path: Path) -> None:
    launches = [make_launch(tmp_path, f"race-{number}", SLEEP) for number in range(ROUNDS)]
    for launch in launches:
        bench.script(launch.name, FOREVER)
    barrier = forking.Barrier(RACERS)
    racers = [forking.Process(target=_race, args=(bench, launches, barrier)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * RACERS
    wait_for(lambda: all(bench.starts(launch) for launch in launches), "the programs to count themselves")
    for launch in launches:
        bench.executor().stop(launch.name, 0)
        wait_until_exited(bench.executor(), launch.name)
    assert [bench.starts(launch) for launch in launches] == [1] * ROUNDS


@pytest.mark.parametrize("delay_ms", [1, 20, 40, 70])
def test_a_starter_killed_at_any_moment_leaves_an_attempt_that_can_be_started_once(
    bench: Bench, tmp_path: Path, delay_ms: int
) -> None:
    launch = make_launch(tmp_path, "a", COUNTED)
    barrier = forking.Barrier(2)
    starter = forking.Process(target=_race, args=(bench, [launch], barrier))
    starter.start()
    barrier.wait()
    time.sleep(delay_ms / 1000)
    assert starter.pid is not None
    os.kill(starter.pid, signal.SIGKILL)
    starter.join()
    executor = bench.executor()
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0
    assert bench.starts(launch) == 1


def test_stop_ends_the_program_and_says_so(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", FOREVER)
    launch = make_launch(tmp_path, "a", SLEEP)
    executor = bench.executor()
    executor.start(launch)
    wait_for(lambda: bench.starts(launch), "the program to run")
    executor.stop("a", 20)
    executor.stop("a", 20)
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (143, "stopped")
    executor.stop("a", 20)
    assert seen(executor, "a") == ended


def test_a_program_that_ignores_term_is_killed_after_the_grace(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", Outcome(runs_for_s=None, ignores_term=True))
    launch = make_launch(tmp_path, "a", IGNORE_TERM)
    executor = bench.executor()
    executor.start(launch)
    wait_for(lambda: bench.starts(launch), "the program to ignore TERM")
    executor.stop("a", 0.5)
    asked_at = time.time()
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (137, "stopped")
    assert ended.ended_at is not None
    assert ended.ended_at >= asked_at + 0.4


def test_a_later_stop_can_shorten_the_grace(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", Outcome(runs_for_s=None, ignores_term=True))
    launch = make_launch(tmp_path, "a", IGNORE_TERM)
    executor = bench.executor()
    executor.start(launch)
    wait_for(lambda: bench.starts(launch), "the program to ignore TERM")
    executor.stop("a", 500)
    executor.stop("a", 0)
    assert wait_until_exited(executor, "a").cause == "stopped"


def test_the_time_limit_ends_the_program(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", FOREVER)
    executor = bench.executor()
    executor.start(make_launch(tmp_path, "a", SLEEP, limits=Limits(time_limit_s=1, stop_grace_s=5)))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (143, "time_limit")
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert 1 <= ended.ended_at - ended.started_at < 5


def test_a_running_attempt_can_not_be_removed_and_an_exited_one_is_forgotten(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", FOREVER)
    launch = make_launch(tmp_path, "a", SLEEP)
    executor = bench.executor()
    executor.start(launch)
    with pytest.raises(ExecutorError, match="running"):
        executor.remove("a")
    executor.stop("a", 0)
    wait_until_exited(executor, "a")
    executor.remove("a")
    executor.remove("a")
    assert executor.list() == []
    assert launch.run_folder.is_dir()


def test_stopping_and_removing_a_stranger_is_no_error(bench: Bench) -> None:
    bench.executor().stop("nobody", 1)
    bench.executor().remove("nobody")
    assert bench.executor().list() == []


def test_what_was_stopped_before_its_start_never_starts(bench: Bench, tmp_path: Path) -> None:
    bench.script("a", FOREVER)
    launch = make_launch(tmp_path, "a", SLEEP)
    bench.executor().stop("a", 1)
    assert bench.executor().list() == []
    for _ in range(2):  # a second starter comes after the first one's end was collected
        bench.executor().start(launch)
        ended = seen(bench.executor(), "a")
        assert ended is not None
        assert (ended.state, ended.exit_code, ended.cause) == ("exited", None, "stopped")
        assert (ended.started_at, ended.spec_digest) == (None, launch.spec.digest())
        bench.executor().remove("a")
        (launch.run_folder / "result.json").unlink(missing_ok=True)
    assert bench.starts(launch) == 0


def test_a_launch_without_its_run_folder_or_program_is_refused_in_words(bench: Bench, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", "pass")
    launch.run_folder.rmdir()
    with pytest.raises(LaunchRefused, match="runs/a does not exist"):
        bench.executor().start(launch)
    assert bench.executor().list() == []


def test_an_unknown_command_is_not_found(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    launch = make_launch(tmp_path, "a", argv=("no-such-command", "x"))
    executor.start(launch)
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (127, "command_not_found")
    assert "no-such-command: No such file" in (launch.run_folder / "log.txt").read_text()


def test_a_file_that_is_no_program_is_not_executable(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    executor.start(make_launch(tmp_path, "a", argv=("/etc/passwd",)))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (126, "command_not_found")


def test_a_crash_of_the_program_is_its_own_and_a_kill_by_a_stranger_is_lost(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    executor.start(make_launch(tmp_path, "crash", "import os; os.abort()"))
    executor.start(make_launch(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    crash = wait_until_exited(executor, "crash")
    killed = wait_until_exited(executor, "killed")
    assert (crash.exit_code, crash.cause) == (134, "exit")
    assert (killed.exit_code, killed.cause) == (137, "lost")


def test_a_program_over_its_memory_is_killed(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    source = "import time\nheld = b'x' * (150 << 20)\ntime.sleep(600)"
    launch = make_launch(tmp_path, "a", source, resources=Resources(memory_mib=100))
    executor.start(launch)
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (137, "out_of_memory")
    assert ended.max_memory_mib is not None
    assert 100 <= ended.max_memory_mib < 200  # seen while it was still filling its 150 MiB, or after
    assert "more than the 100 MiB" in (launch.run_folder / "log.txt").read_text()


def test_memory_shared_by_forked_children_is_counted_once(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    source = "import os, time\nheld = b'x' * (60 << 20)\nfor _ in range(3):\n  os.fork()\ntime.sleep(1.6)"
    executor.start(make_launch(tmp_path, "a", source, resources=Resources(memory_mib=150)))
    assert wait_until_exited(executor, "a").cause == "exit"


def test_a_daemonised_grandchild_ends_with_the_program(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    marker = f"orphan-of-{os.getpid()}-{tmp_path.name}"
    source = f"""
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; open('up', 'w'); time.sleep(600)", "{marker}"])
    os._exit(0)
while not os.path.exists("up"):
    time.sleep(0.01)
"""
    executor.start(make_launch(tmp_path, "a", source))
    assert wait_until_exited(executor, "a").exit_code == 0
    assert (tmp_path / "runs/a/work/up").exists()
    assert processes_with(marker) == []


def test_a_hundred_megabytes_without_newline_arrive_whole_and_in_order(real_bench: Bench, tmp_path: Path) -> None:
    executor = real_bench.executor()
    source = """
import os
for number in range(100):
    piece = b"%09d" % number * 111_112
    while piece:
        piece = piece[os.write(1 + number % 2, piece):]
"""
    launch = make_launch(tmp_path, "a", source)
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0
    expected = hashlib.sha256(b"".join(b"%09d" % number * 111_112 for number in range(100)))
    with open(launch.run_folder / "log.txt", "rb") as stream:
        assert hashlib.file_digest(stream, "sha256").digest() == expected.digest()
    assert json.loads((launch.run_folder / "result.json").read_text())["log_truncated"] is False


def test_a_second_attempt_continues_the_log_and_ignores_the_result_of_the_first(
    real_bench: Bench, tmp_path: Path
) -> None:
    executor = real_bench.executor()
    first = make_launch(tmp_path, "a", "print('one')")
    executor.start(first)
    wait_until_exited(executor, "a")
    second = Launch("b", first.run_folder, first.spec, 7, {})
    executor.start(second)
    ended = wait_until_exited(executor, "b")
    assert (ended.name, ended.cause) == ("b", "exit")
    assert (first.run_folder / "log.txt").read_text() == "one\none\n"
    assert seen(executor, "a") is not None


def processes_with(marker: str) -> list[str]:
    """Command lines on this host that contain the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line:
            found.append(line)
    return found


def _race(bench: Bench, launches: list[Launch], barrier: Barrier) -> None:
    executor = bench.executor()
    for launch in launches:
        barrier.wait()
        executor.start(launch)
