"""The zygote: its programs are as new processes, it knows nothing of them, and it may die, be idle or be stale."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contract.run_spec import Resources, RunSpec
from runner.executors import warm
from runner.executors.base import Gang, Launch
from runner.executors.local_process import LocalProcessExecutor
from tests.runner.executors.bench import COUNTED, make_launch, seen, wait_for, wait_until_exited
from tests.runner.executors.local_bench import told
from tests.runner.executors.warm_executor import WarmExecutor, zygote_of

SLEEP = COUNTED + "import time; print('up', flush=True); time.sleep(600)"
#: All that a process has of its own or inherits, but for numbers that each process has another of.
FACTS = """
import json, locale, os, resource, sys, threading
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
keys = ("SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
        "Threads", "Uid", "Gid", "Groups")
limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
del limits["RLIMIT_NPROC"]  # on top of what its user runs at the moment, in other tests too
nodes = [line.split() for line in open("/proc/self/maps")]
umask = os.umask(0)
facts = {
    **{key: status[key].strip() for key in keys}, "limits": limits, "umask": umask, "cwd": os.getcwd(),
    "environment": dict(os.environ), "arguments": sys.argv[1:], "main": __name__, "path": sys.path,
    "flags": str(sys.flags), "executable": sys.executable,
    "encodings": [sys.stdout.encoding, sys.getfilesystemencoding()],
    "buffering": [sys.stdout.line_buffering, sys.stdout.write_through], "locale": locale.getlocale(),
    "descriptors": {number: os.fstat(int(number)).st_mode for number in os.listdir("/proc/self/fd")
                    if os.path.exists("/proc/self/fd/" + number)},
    "input": os.readlink("/proc/self/fd/0"), "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "parent": os.getppid(), "owner": os.stat("/proc/self/environ").st_uid, "nice": os.nice(0),
    "oom": open("/proc/self/oom_score_adj").read(), "shared": [node for node in nodes if node[1].startswith("rw-s")],
    "words": open("/proc/self/cmdline").read().split("\\0")[:3],
    "affinity": sorted(os.sched_getaffinity(0)), "thread": threading.current_thread().name,
}
print(json.dumps(facts))
"""


class ColdExecutor(WarmExecutor):
    """The same programs, each in an interpreter of its own."""

    def __init__(self, control_folder: Path) -> None:
        super().__init__(control_folder, idle_s=0)

    def start(self, launch: Launch) -> None:
        LocalProcessExecutor.start(self, launch)


@pytest.fixture
def local() -> type[LocalProcessExecutor]:
    return WarmExecutor


def facts_of(executor: LocalProcessExecutor, launch: Launch) -> dict[str, Any]:
    """What the program of a launch found out of itself, with its own run folder by another name."""
    executor.start(launch)
    assert wait_until_exited(executor, launch.name).exit_code == 0
    log = (launch.run_folder / "log.txt").read_text()
    facts: dict[str, Any] = json.loads(log.replace(str(launch.run_folder), "RUN"))
    return facts


def test_a_fork_is_in_all_respects_what_a_new_process_is(executor: WarmExecutor, tmp_path: Path) -> None:
    as_fork = facts_of(executor, make_launch(tmp_path, "a", FACTS))
    as_new = facts_of(ColdExecutor(tmp_path / "cold"), make_launch(tmp_path, "b", FACTS))
    assert as_fork == as_new
    assert (as_fork["Threads"], as_fork["shared"]) == ("1", [])
    wrapper = json.loads((tmp_path / "control/a/wrapper.log").read_text() or "{}")
    assert wrapper == {}  # nothing went wrong that a cold start had to mend


def test_two_forks_draw_different_random_numbers(executor: WarmExecutor, tmp_path: Path) -> None:
    source = "import json, random, tempfile, uuid; print(json.dumps([random.random(), tempfile.mktemp()]))"
    first, second = (told(executor, make_launch(tmp_path, name, source)) for name in "ab")
    assert first[0] != second[0]
    assert first[1].startswith(str(tmp_path / "runs/a/work/tmp"))
    assert second[1].startswith(str(tmp_path / "runs/b/work/tmp"))


@pytest.mark.parametrize(
    ("source", "exit_code", "said"),
    [
        ("import sys; sys.exit('no such model')", 1, "no such model\n"),
        ("raise SystemExit(None)", 0, ""),
        ("import atexit; atexit.register(print, 'last'); 1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 130, "KeyboardInterrupt"),
        ("import threading; threading.Timer(0.2, print, ['waited']).start()", 0, "waited"),
    ],
)
def test_a_fork_ends_as_an_interpreter_does(
    executor: WarmExecutor, tmp_path: Path, source: str, exit_code: int, said: str
) -> None:
    launch = make_launch(tmp_path, "a", source)
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == exit_code
    log = (launch.run_folder / "log.txt").read_text()
    assert said in log
    assert ("atexit" in source) == ("last\n" in log)


def test_the_zygote_keeps_nothing_of_what_it_has_started(executor: WarmExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "attempt-of-somebody", "pass", resources=Resources(memory_mib=4321))
    executor.start(launch)
    wait_until_exited(executor, launch.name)
    zygote = zygote_of(executor)
    assert os.listdir(f"/proc/{zygote}/task") == [str(zygote)]
    words = (b"attempt-of-somebody", b"4321", str(launch.run_folder).encode())
    assert [word for word in words if word in memory_of(zygote)] == []


def test_a_program_outlives_its_zygote(executor: WarmExecutor, tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a", SLEEP)
    executor.start(launch)
    os.kill(zygote_of(executor), signal.SIGKILL)
    wait_for(lambda: "up" in (launch.run_folder / "log.txt").read_text(), "the program")
    observation = seen(executor, "a")
    assert observation is not None
    assert observation.state == "running"
    executor.stop("a", 5)
    assert wait_until_exited(executor, "a").cause == "stopped"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_zygote_that_is_dead_or_hangs_costs_a_cold_start(
    executor: WarmExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    executor.start(make_launch(tmp_path, "a", "pass"))
    zygote = zygote_of(executor)
    monkeypatch.setattr(warm, "_ANSWER_S", 0.3)
    os.kill(zygote, number)
    launch = make_launch(tmp_path, "b", COUNTED)
    executor.start(launch)
    assert wait_until_exited(executor, "b").exit_code == 0
    if number == signal.SIGSTOP:  # it comes back and finds the order, whose place is taken
        os.kill(zygote, signal.SIGCONT)
        executor.start(make_launch(tmp_path, "c", "pass"))
        wait_until_exited(executor, "c")
        assert zygote_of(executor) == zygote
    assert (launch.run_folder / "work/starts").read_text() == "started\n"


def test_a_zygote_made_for_another_environment_ends_and_another_is_made(executor: WarmExecutor, tmp_path: Path) -> None:
    executor.start(make_launch(tmp_path, "a", "pass"))
    first = zygote_of(executor)
    other = WarmExecutor(tmp_path / "control", environment={"FROM_OPERATOR": "1"})
    source = "import os; print(os.environ['FROM_OPERATOR'])"
    other.start(make_launch(tmp_path, "b", source))
    assert wait_until_exited(other, "b").exit_code == 0
    wait_for(lambda: zygote_of(other) not in (None, first), "another zygote")
    launch = make_launch(tmp_path, "c", source)
    other.start(launch)
    assert wait_until_exited(other, "c").exit_code == 0
    assert (launch.run_folder / "log.txt").read_text() == "1\n"


def test_a_zygote_ends_when_it_is_idle_and_when_its_folder_is_gone(tmp_path: Path) -> None:
    zygotes = []
    for name, idle_s in (("idle", 0.2), ("gone", 60.0)):
        executor = WarmExecutor(tmp_path / name, idle_s=idle_s)
        executor.make_zygote(make_launch(tmp_path, "a", "pass"))
        zygotes.append(zygote_of(executor))
    assert zygotes[1] is not None  # the other one may have ended by now
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    wait_for(lambda: not any(pid and Path(f"/proc/{pid}").exists() for pid in zygotes), "the end of both")


def test_imports_that_start_a_thread_make_no_zygote(tmp_path: Path) -> None:
    executor = WarmExecutor(tmp_path / "control")
    assert executor._zygotes is not None
    executor._zygotes._preload = "tests.runner.executors.probe_with_thread"
    launch = make_launch(tmp_path, "a", "pass")
    executor._zygotes.make(executor._order(launch).environment)
    mark = tmp_path / "control/.warm/mark.json"
    wait_for(lambda: "2 threads" in mark.read_text(), "the reason")
    LocalProcessExecutor.start(executor, launch)
    assert wait_until_exited(executor, "a").exit_code == 0
    assert zygote_of(executor) is None


def test_only_programs_of_ours_without_anything_special_are_warm(tmp_path: Path) -> None:
    spec = RunSpec("fine_tune", "runner.programs.train.sft", {})
    launch = Launch("a", tmp_path, spec, 7, {})
    assert warm.can_be_warm(launch)
    assert not warm.can_be_warm(replace(launch, gpus=("GPU-1",)))
    assert not warm.can_be_warm(replace(launch, gang=Gang(0, 2, "n", "127.0.0.1")))
    for change in (
        {"program": None, "argv": (sys.executable, "-c", "pass")},
        {"program": "runner.programs.serve.replica"},
        {"needs_network": True},
        {"environment": {"LD_PRELOAD": "x"}},
    ):
        assert not warm.can_be_warm(replace(launch, spec=replace(spec, **change)))
    (tmp_path / "log.txt").touch()
    assert not warm.can_be_warm(launch)


def memory_of(pid: int) -> bytes:
    """All that a process may write to."""
    pieces = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if fields[1].startswith("rw"):
                start, end = (int(edge, 16) for edge in fields[0].split("-"))
                memory.seek(start)
                pieces.append(memory.read(end - start))
    return b"".join(pieces)
