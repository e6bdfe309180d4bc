"""The supervisor, seen from outside: a small program that supervises small programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from clavier.core.supervise import AlreadyRunning, only_one, pause_after

ROOT = Path(__file__).resolve().parents[2]

SUPERVISING = """
import os, signal, sys
from pathlib import Path
from clavier.core import supervise
supervise.STOP_WITHIN_S = 2.0
supervise.READY_WITHIN_S = 2.0
home = Path(sys.argv[1])

def python(name, code, **more):
    return supervise.Child(name, [sys.executable, "-u", "-c", code], dict(os.environ), **more)

def has_said(name, words):
    log = home / "logs" / f"{{name}}.log"
    return log.exists() and words in log.read_text()

SLEEP = "import time; print('up'); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"
LISTEN = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('ending'), sys.exit(0)));" \\
    " print('up'); time.sleep(600)"
children = [{children}]
sys.exit(supervise.Supervisor(children, home / "logs", sys.stdout).run({arguments}))
"""


class Supervised:
    """A supervisor in a process of its own, and what it printed so far."""

    def __init__(self, home: Path, children: str, arguments: str = "") -> None:
        self.home = home
        self.output = home / "output.txt"
        code = SUPERVISING.format(children=children, arguments=arguments)
        with open(self.output, "wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code), str(home)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"},
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str, times: int = 1) -> None:
        wait_until(lambda: len(re.findall(pattern, self.text())) >= times, lambda: f"{pattern!r} in:\n{self.text()}")

    def child_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 10.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(within_s)


def wait_until(holds: Callable[[], bool], what: Callable[[], str], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what()}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(children: str, arguments: str = "") -> Supervised:
        started.append(Supervised(tmp_path, children, arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_children_start_in_order_and_stop_in_reverse(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('first', LISTEN, ready=lambda: has_said('first', 'up')), python('second', LISTEN)")
    one.wait_for(r"second \| up")
    pids = one.child_pids()
    assert one.end() == 0
    said = re.findall(r"(\w+) +\| (up|ending)", one.text())
    assert said == [("first", "up"), ("second", "up"), ("second", "ending"), ("first", "ending")]
    assert all(is_gone(pid) for pid in pids)
    assert (one.home / "logs" / "second.log").read_text() == "up\nending\n"


def test_a_child_that_dies_is_started_again_with_a_growing_pause(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('steady', SLEEP), python('broken', 'import sys; print(1); sys.exit(3)')")
    one.wait_for(r"broken \| 1", times=3)
    assert re.findall(r"exited with code 3 after .* again in (\S+) s", one.text())[:2] == ["0.5", "1"]
    assert one.text().count("steady | up") == 1
    assert one.end() == 0


@pytest.mark.parametrize(
    ("lives", "was_killed", "pauses"),
    [
        ([0.1] * 8, False, [0.5, 1, 2, 4, 8, 16, 30, 30]),
        ([0.1, 0.1, 90, 0.1], False, [0.5, 1, 0, 0.5]),
        ([10, 10, 10], False, [0.5, 1, 2]),
        ([10, 4, 0.1, 0.1, 10], True, [0, 0, 0.5, 1, 0]),
    ],
    ids=["broken", "broken for a while", "never gets far", "somebody kills it"],
)
def test_only_quick_deaths_make_pauses_grow(lives: list[float], was_killed: bool, pauses: list[float]) -> None:
    found, pause_s = [], 0.0
    for alive_s in lives:
        pause_s = pause_after(alive_s, pause_s, was_killed=was_killed)
        found.append(pause_s)
    assert found == pauses


def test_a_killed_child_is_named_with_its_signal(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('server', SLEEP)")
    one.wait_for("up")
    os.kill(one.child_pids()[0], signal.SIGKILL)
    one.wait_for("was killed by SIGKILL after .* starting it again in 0")
    one.wait_for(r"server \| up", times=2)
    assert one.end(signal.SIGINT) == 0


def test_a_stale_socket_is_taken_away_before_each_start(supervise: Callable[..., Supervised]) -> None:
    code = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print('bound');"
        " time.sleep(600)"
    )
    one = supervise(
        f'supervise.Child("server", [sys.executable, "-u", "-c", "{code}", str(home / "s.sock")], dict(os.environ),'
        ' prepare=lambda: (home / "s.sock").unlink(missing_ok=True))'
    )
    one.wait_for("bound")
    os.kill(one.child_pids()[0], signal.SIGKILL)
    one.wait_for(r"server \| bound", times=2)
    assert one.end() == 0


def test_what_a_dead_child_left_behind_dies_before_it_starts_again(supervise: Callable[..., Supervised]) -> None:
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        " print('left', p.pid); time.sleep(600)"
    )
    one = supervise(f'python("server", "{code}")')
    one.wait_for(r"left \d+")
    left = int(re.findall(r"left (\d+)", one.text())[0])
    os.kill(one.child_pids()[0], signal.SIGKILL)
    one.wait_for(r"left \d+", times=2)
    assert is_gone(left)
    assert one.end() == 0


def test_children_that_ignore_term_are_killed_in_time(supervise: Callable[..., Supervised]) -> None:
    one = supervise("*(python(f'deaf-{i}', DEAF) for i in range(4))")
    one.wait_for("up", times=4)
    pids = one.child_pids()
    asked = time.monotonic()
    assert one.end() == 1
    assert time.monotonic() - asked < 2.0 + 1.0, "STOP_WITHIN_S and a second"
    assert all(is_gone(pid) for pid in pids)
    assert one.text().count("killing it") == 4


def test_a_second_ctrl_c_kills_at_once(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('deaf', DEAF), python('deaf-too', DEAF)")
    one.wait_for("up", times=2)
    pids = one.child_pids()
    one.process.send_signal(signal.SIGINT)
    one.wait_for("once more kills at once")
    assert one.end(signal.SIGINT, within_s=1.0) == 130
    assert all(is_gone(pid) for pid in pids)


def test_a_killed_supervisor_leaves_no_children(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('first', SLEEP), python('second', LISTEN)")
    one.wait_for("up", times=2)
    pids = one.child_pids()
    one.process.kill()
    one.process.wait()
    wait_until(lambda: all(is_gone(pid) for pid in pids), lambda: f"{pids} gone")


def test_a_child_whose_program_is_missing_is_said_and_the_others_run(supervise: Callable[..., Supervised]) -> None:
    one = supervise("supervise.Child('gone', ['/nowhere/server'], {}), python('server', SLEEP)")
    one.wait_for(r"could not be started \(No such file or directory: /nowhere/server\)")
    one.wait_for(r"server \| up")
    assert one.end() == 0


def test_the_banner_comes_when_everything_is_ready(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('server', SLEEP)", "lambda: (home / 'ready').exists(), 'Open http://portal'")
    one.wait_for("Not ready after 2 s")
    assert "Open http://portal" not in one.text()
    (one.home / "ready").touch()
    one.wait_for("Open http://portal")
    assert one.end() == 0


def test_an_error_in_a_readiness_check_stops_all_and_is_shown(supervise: Callable[..., Supervised]) -> None:
    one = supervise("python('server', LISTEN), python('next', SLEEP, ready=lambda: 1 / 0)")
    assert one.process.wait(10) == 1
    assert "ZeroDivisionError" in one.text()


def test_a_log_file_rotates_by_size(supervise: Callable[..., Supervised]) -> None:
    code = "import time; [print(str(i) * 1000) for i in range(9)]; print('end'); time.sleep(600)"
    one = supervise(f'[setattr(supervise, "LOG_FILE_BYTES", 4000), python("server", "{code}")][1]')
    one.wait_for(r"server \| end")
    assert {path.name: path.stat().st_size for path in (one.home / "logs").iterdir()} == {
        "server.log.2": 3003,
        "server.log.1": 3003,
        "server.log": 3003 + len("end\n"),
    }
    assert one.end() == 0


def test_a_line_without_end_is_passed_on_in_pieces(supervise: Callable[..., Supervised]) -> None:
    one = supervise("""python("server", "import time; print('x' * 200_000, end='', flush=True); time.sleep(600)")""")
    one.wait_for("x{65536}")
    assert one.end() == 0
    assert one.text().count("x") == 200_000


def test_two_supervisors_never_share_a_home(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "up.lock"),
        pytest.raises(AlreadyRunning, match=rf"already running on {tmp_path} \(pid {os.getpid()}\)"),
        only_one(tmp_path / "up.lock"),
    ):
        pass
    with only_one(tmp_path / "up.lock"):
        assert (tmp_path / "up.lock").read_text() == str(os.getpid())
