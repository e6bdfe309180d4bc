"""Containers that end in every way there is, and starts that are interrupted, repeated or disturbed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from runner.contract.run_spec import Limits, Resources, RunSpec
from runner.executors import docker_client
from runner.executors.base import ExecutorError, Launch, LaunchRefused
from runner.executors.docker_attempt import Intent, judge
from runner.executors.docker_wrapper import ensure_wrapper
from runner.executors.launching import REPOSITORY
from runner.worker.bells import Bells
from runner.worker.engines import Engine
from tests.docker_engine import DockerDaemon, new_daemon
from tests.runner.executors.bench import (
    COUNTED,
    DockerBench,
    make_launch,
    seen,
    wait_for,
    wait_until_exited,
)

pytestmark = pytest.mark.docker

SLEEP = COUNTED + "import time; time.sleep(600)"
HOG = "import os, sys\nif os.fork() == 0:\n  held = b'x' * (300 << 20)\nos.wait()\n"


def log_of(launch: Launch) -> str:
    return (launch.run_folder / "log.txt").read_text()


def test_a_killed_child_is_a_warning_when_the_program_itself_goes_well(docker: DockerBench, tmp_path: Path) -> None:
    executor, small = docker.executor(), Resources(memory_mib=100)
    good = make_launch(tmp_path, "good", HOG, resources=small)
    bad = make_launch(tmp_path, "bad", HOG + "sys.exit(3)", resources=small)
    executor.start(good)
    executor.start(bad)
    ended = wait_until_exited(executor, "good")
    assert (ended.exit_code, ended.cause) == (0, "exit")
    assert "more than the 100 MiB" in ended.warning
    ended = wait_until_exited(executor, "bad")
    assert (ended.exit_code, ended.cause, ended.max_memory_mib) == (3, "out_of_memory", 100)
    assert "the kernel killed 1 process" in log_of(bad)


@pytest.mark.slow
def test_a_program_that_stops_its_wrapper_is_killed_when_its_time_is_over(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    source = COUNTED + "import signal, time; os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)"
    limited = make_launch(tmp_path, "limited", source, limits=Limits(time_limit_s=1, stop_grace_s=0))
    asked = make_launch(tmp_path, "asked", source)
    for launch in (limited, asked):
        executor.start(launch)
        wait_for(lambda launch=launch: docker.starts(launch), "the program")
    executor.stop("asked", 0)
    ended = wait_until_exited(executor, "asked")
    assert (ended.exit_code, ended.cause) == (137, "stopped")
    ended = wait_until_exited(executor, "limited")
    assert (ended.exit_code, ended.cause) == (137, "time_limit")
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.ended_at - ended.started_at < 10


def test_an_end_rings_also_after_the_engine_was_away(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor, bells = docker.executor(), Bells()
    bells.attend({Engine("docker_engine"): executor})
    for life in ("first", "second"):
        for number in range(20):  # nobody knows from when on it listens
            executor.start(make_launch(tmp_path, f"{life}-{number}", ""))
            if bells.wait(0.0, 3.0):
                break
        else:
            pytest.fail(f"no ring in the {life} life of the engine")
        docker_daemon.restart()


def test_a_program_that_kills_its_wrapper_is_lost_and_nothing_of_it_lives(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    executor.start(make_launch(tmp_path, "a", "import os, time; os.kill(os.getppid(), 9); time.sleep(600)"))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (137, "lost")
    assert json.loads((tmp_path / "runs/a/result.json").read_text())["cause"] == "lost"


FORGED = json.dumps(
    {"ending": "stopped", "exit_code": 0, "not_run": False, "started_at": 1, "ended_at": 1e18, "max_memory_mib": 1,
     "memory_kills": 0, "log_truncated": False}
)  # fmt: skip


@pytest.mark.parametrize("forged", [FORGED, "[]", "{", "[" * 50_000, '{"exit_code": "x"}', '{"exit_code": 1e999}'])
@pytest.mark.parametrize("kills", [False, True])
def test_a_forged_report_changes_nothing(docker: DockerBench, tmp_path: Path, forged: str, kills: bool) -> None:
    executor = docker.executor()
    source = f"open('/clavier/report/report.json', 'w').write({forged!r}); import os\n"
    source += "os.kill(os.getppid(), 9)\n" if kills else ""
    executor.start(make_launch(tmp_path, "a", source + "raise SystemExit(5)"))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == ((137, "lost") if kills else (5, "exit"))
    assert ended.ended_at is not None
    assert ended.ended_at < 1e11  # the engine's own time, not the forged one


def test_a_container_that_went_down_with_its_machine_is_lost(tmp_path: Path) -> None:
    intent = Intent("a", "d", str(tmp_path), 0, 200_007, 64, 3600.0, 1.0, True, "", {})
    state = {"StartedAt": "2026-01-01T00:00:00.1Z", "FinishedAt": "2026-01-01T03:00:00.1Z", "ExitCode": 255,
             "OOMKilled": False, "Error": ""}  # fmt: skip
    assert judge(intent, None, state, is_stop_asked=False).cause == "lost"
    assert judge(intent, None, state, is_stop_asked=True).cause == "stopped"


def test_a_container_with_our_label_and_no_name_of_an_attempt_hides_no_other(
    docker: DockerBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = docker.executor()
    executor.start(make_launch(tmp_path, "a", "pass"))
    lines = executor._engine.containers

    def with_a_nameless_one(label: str) -> list[dict[str, Any]]:
        found = lines(label)
        return [*found, *({**line, "Labels": {"clavier.install": docker.install_id}} for line in found)]

    monkeypatch.setattr(executor._engine, "containers", with_a_nameless_one)
    assert [seen.name for seen in executor.list()] == ["a"]


def test_a_report_that_is_a_folder_hides_no_attempt_of_anybody(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    source = "import os; os.mkdir('/clavier/report/report.json'); os.kill(os.getppid(), 9)"
    executor.start(make_launch(tmp_path, "a", source))
    assert wait_until_exited(executor, "a").cause == "lost"


def test_no_report_claims_more_memory_than_a_column_takes(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    forged = FORGED.replace('"max_memory_mib": 1', '"max_memory_mib": 1' + "0" * 30)
    source = f"open('/clavier/report/report.json', 'w').write({forged!r}); import os; os.kill(os.getppid(), 9)"
    executor.start(make_launch(tmp_path, "a", source))
    assert wait_until_exited(executor, "a").max_memory_mib == 2**31 - 1


def test_a_clock_that_is_set_forward_ends_nobody(
    docker: DockerBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", SLEEP, limits=Limits(time_limit_s=100, stop_grace_s=1))
    executor.start(launch)
    wait_for(lambda: docker.starts(launch), "the program")
    real = time.time
    with monkeypatch.context() as later:
        later.setattr("runner.executors.docker_observer.time.time", lambda: real() + 3600)
        executor.list()
    time.sleep(1)
    assert [seen.state for seen in executor.list()] == ["running"]
    executor.stop("a", 0)
    wait_until_exited(executor, "a")


def test_a_report_that_is_a_link_to_a_secret_is_not_read(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    source = "import os; os.symlink('/etc/shadow', '/clavier/report/report.json'); raise SystemExit(5)"
    executor.start(make_launch(tmp_path, "a", source))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (5, "exit")


def test_a_container_that_a_stranger_removed_is_gone_and_is_never_made_again(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", SLEEP)
    executor.start(launch)
    wait_for(lambda: docker.starts(launch), "the program")
    docker_daemon.client.remove_container("clavier-a", force=True)
    assert executor.list() == []
    executor.start(launch)
    ended = seen(executor, "a")
    assert ended is not None
    assert (ended.state, ended.cause, ended.warning) == ("exited", "lost", "The engine no longer has its container.")
    assert docker.starts(launch) == 1


def test_a_stop_before_the_start_means_it_never_starts(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", COUNTED)
    executor._engine.start = lambda container: None  # type: ignore[method-assign]  # as if killed before
    executor.start(launch)
    with pytest.raises(ExecutorError, match="is starting"):
        executor.remove("a")
    executor.stop("a", 5)
    docker.executor().start(launch)
    ended = wait_until_exited(executor, "a")
    assert (ended.cause, ended.exit_code, ended.started_at) == ("stopped", None, None)
    executor.remove("a")
    assert docker.starts(launch) == 0


def test_a_created_container_is_adopted_when_it_fits_and_made_again_when_it_does_not(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    client = docker_daemon.client
    label = f"clavier.install={docker.install_id}"
    for name, change in (("same", {}), ("other", {"Privileged": True})):
        launch = make_launch(tmp_path, name, COUNTED)
        executor = docker.executor()
        started = executor._engine.start
        executor._engine.start = lambda container: None  # type: ignore[method-assign]  # as if killed before
        executor.start(launch)
        executor._engine.start = started  # type: ignore[method-assign]
        made = client.inspect_container(f"clavier-{name}")
        observation = seen(executor, name)
        assert observation is not None
        assert observation.state == "starting"
        if change:
            client.remove_container(made["Id"])
            payload = made["Config"] | {"HostConfig": made["HostConfig"] | change}
            made["Id"] = client.create_container_from_config(payload, f"clavier-{name}")["Id"]
            (tmp_path / f"control/{name}/container.json").unlink()
        executor.start(launch)
        assert wait_until_exited(executor, name).exit_code == 0
        assert (client.inspect_container(f"clavier-{name}")["Id"] == made["Id"]) is (not change)
        assert client.inspect_container(f"clavier-{name}")["HostConfig"]["Privileged"] is False
        assert docker.starts(launch) == 1
    assert len(client.containers(all=True, filters={"label": label})) == 2


def test_an_engine_that_makes_something_else_is_infrastructure_in_words_and_nothing_starts(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    inspect = executor._engine.inspect

    def altered(container: str) -> dict[str, Any] | None:
        facts = inspect(container)
        if facts is not None:
            facts["HostConfig"]["MemorySwap"] = -1  # what an engine does where the kernel counts no swap
        return facts

    executor._engine.inspect = altered  # type: ignore[method-assign]
    launch = make_launch(tmp_path, "a", COUNTED)
    with pytest.raises(ExecutorError, match=r"HostConfig\.MemorySwap is -1 instead of"):
        executor.start(launch)
    ended = seen(executor, "a")
    assert ended is not None
    assert (ended.state, ended.cause) == ("exited", "lost")
    assert "MemorySwap" in ended.warning
    assert docker_daemon.client.containers(all=True) == []
    executor.start(launch)
    assert docker.starts(launch) == 0


def test_what_the_operator_named_and_is_not_there_is_no_fault_of_the_user(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor(wrapper=f"{tmp_path}/no-wrapper")
    with pytest.raises(ExecutorError, match="no-wrapper: No such file"):
        executor.start(make_launch(tmp_path, "a", "pass"))
    now = seen(executor, "a")
    assert now is not None
    assert now.state == "starting"
    executor.stop("a", 0)


def test_an_engine_whose_clock_is_behind_does_not_end_runs_early(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    executor.start(make_launch(tmp_path, "a", SLEEP, limits=Limits(time_limit_s=60)))
    inspect = executor._engine.inspect

    def behind(container: str) -> dict[str, Any] | None:
        facts = inspect(container)
        assert facts is not None
        facts["State"]["StartedAt"] = "2020-01-01T00:00:00.123456789Z"
        return facts

    executor._engine.inspect = behind  # type: ignore[method-assign]
    for _ in range(2):
        now = seen(executor, "a")
        assert now is not None
        assert now.state == "running"


def test_a_container_of_somebody_else_under_our_name_is_left_alone(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    client = docker_daemon.client
    theirs = {"Image": docker_daemon.images.python, "Cmd": [os.path.realpath(sys.executable), "-c", SLEEP]}
    client.create_container_from_config(theirs, "clavier-a")
    client.start("clavier-a")
    try:
        with pytest.raises(LaunchRefused, match="somebody else"):
            docker.executor().start(make_launch(tmp_path, "a", COUNTED))
        docker.executor().stop("a", 0)
        docker.executor().remove("a")
        assert docker.executor().list() == []
        assert client.inspect_container("clavier-a")["State"]["Status"] == "running"
    finally:
        client.remove_container("clavier-a", force=True)


def test_a_container_of_ours_whose_folder_is_lost_is_listed_and_can_be_ended(
    docker: DockerBench, tmp_path: Path
) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", SLEEP)
    executor.start(launch)
    wait_for(lambda: docker.starts(launch), "the program")
    (tmp_path / "control/a").rename(tmp_path / "elsewhere")
    now = seen(docker.executor(), "a")
    assert now is not None
    assert (now.state, now.spec_digest) == ("running", launch.spec.digest())
    executor.stop("a", 60)
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (137, "lost")
    executor.remove("a")
    assert executor.list() == []


def test_a_container_that_is_started_a_second_time_does_not_run_its_program_again(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", COUNTED + "raise SystemExit(7)")
    executor.start(launch)
    wait_for(lambda: docker_daemon.client.inspect_container("clavier-a")["State"]["Status"] == "exited", "the end")
    docker_daemon.client.start("clavier-a")
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (7, "exit")
    assert docker.starts(launch) == 1


def test_a_list_is_one_call_and_looks_closer_only_once(
    docker: DockerBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = docker.executor()
    for name in ("a", "b"):
        executor.start(make_launch(tmp_path, name, SLEEP))
    executor.start(make_launch(tmp_path, "c", "pass"))
    wait_until_exited(executor, "c")
    asked: list[str] = []
    send = requests.Session.send

    def counting(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append(str(request.path_url).split("?")[0].rsplit("/", 1)[-1])
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", counting)
    fresh = docker.executor()
    fresh.list()
    assert asked.count("json") == 3  # the list, and the two that run
    assert set(asked) == {"json", "version"}
    asked.clear()
    assert [seen.state for seen in fresh.list()] == ["running", "running", "exited"]
    assert asked == ["json"]


def test_a_log_over_its_cap_says_so_and_the_program_goes_on(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor(max_log_mib=1)
    launch = make_launch(tmp_path, "a", "print('x' * (3 << 20)); print('end')")
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0
    assert log_of(launch) == "x" * (1 << 20) + "\n[clavier] the log is full (1 MiB); what follows is dropped\n"
    assert json.loads((launch.run_folder / "result.json").read_text())["log_truncated"] is True
    assert (launch.run_folder / "log.txt").stat().st_uid == os.geteuid()


def test_an_engine_that_does_not_answer_is_an_error_and_never_an_empty_list(
    docker: DockerBench, tmp_path: Path
) -> None:
    executor = replace(docker, engine_url=f"unix://{tmp_path}/nothing.sock").executor()
    launch = make_launch(tmp_path, "a", "pass")
    for call in (executor.list, lambda: executor.start(launch), lambda: executor.remove("a"), executor.images):
        with pytest.raises(ExecutorError, match=r"nothing\.sock does not answer"):
            call()
    executor.stop("a", 0)
    docker.executor().start(launch)
    ended = wait_until_exited(docker.executor(), "a")
    assert (ended.cause, ended.started_at) == ("stopped", None)


def test_a_stop_or_a_removal_gives_up_on_an_engine_that_hangs_long_before_a_start_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.executors.docker_client._SHORT_TIMEOUT_S", 1.0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen(16)
        engine = docker_client.Engine(f"unix://{tmp_path}/s", timeout_s=600)
        for call in (engine.inspect, engine.remove, lambda name: engine.signal(name, "TERM")):
            with pytest.raises(ExecutorError, match="does not answer"):
                call("clavier-a")


def test_a_server_whose_socket_path_is_too_long_is_refused_before_it_starts(
    docker: DockerBench, tmp_path: Path
) -> None:
    launch = make_launch(tmp_path, "a" * 100, "pass", ready_file=True)
    with pytest.raises(ExecutorError, match="Move CLAVIER_HOME to a shorter path"):
        docker.executor().start(launch)


def test_more_cores_than_the_machine_has_are_refused_in_words(docker: DockerBench, tmp_path: Path) -> None:
    with pytest.raises(LaunchRefused, match="CPUs"):
        docker.executor().start(make_launch(tmp_path, "a", "pass", resources=Resources(cpu_milli=10_000_000)))
    assert docker.executor().list() == []


def test_a_platform_program_runs_from_the_bound_repository(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a")
    spec = RunSpec("model_import", "runner.programs.models.import_model", {"source": "nonsense"})
    launch = replace(launch, spec=spec)
    (launch.run_folder / "spec.json").write_text(json.dumps(spec.to_json()))
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 64, log_of(launch)
    assert "ERROR" in log_of(launch)


def test_without_a_compiler_the_operator_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError, match=r"no C compiler.*DOCKER_WRAPPER"):
        ensure_wrapper(tmp_path / "wrapper")


def test_the_wrapper_refuses_to_run_outside_of_a_container(tmp_path: Path) -> None:
    wrapper = ensure_wrapper(tmp_path / "wrapper")
    # Without this guard its kill(-1) would end the host: it must never get further than its first lines here.
    source = wrapper.read_bytes()
    assert b"runs only below the init of a container, and never as root" in source


# --- an engine of the test's own: it dies and comes back, or has GPUs -------------------------------------------


@pytest.fixture
def own_daemon(docker_daemon: DockerDaemon) -> Iterator[DockerDaemon]:
    """A second engine that a test may kill."""
    daemon = new_daemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_run_survives_the_death_of_the_engine_and_one_that_ends_meanwhile_is_found_whole(
    own_daemon: DockerDaemon, tmp_path: Path
) -> None:
    bench = DockerBench(tmp_path, own_daemon.url, own_daemon.images.python)
    executor = bench.executor()
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
    ending = make_launch(tmp_path, "ending", "print('one', flush=True)\n" + wait + "print('two'); raise SystemExit(9)")
    lasting = make_launch(tmp_path, "lasting", "print('one', flush=True)\n" + COUNTED + wait + "print('two')")
    for launch in (ending, lasting):
        executor.start(launch)
        wait_for(lambda launch=launch: "one" in log_of(launch), "the program")
    own_daemon.kill()
    with pytest.raises(ExecutorError):
        executor.list()
    (ending.run_folder / "work/go").touch()
    wait_for(lambda: "two" in log_of(ending), "the end of a program without an engine")
    own_daemon.start()
    executor.start(lasting)
    ended = wait_until_exited(bench.executor(), "ending")
    assert (ended.exit_code, ended.cause, log_of(ending)) == (9, "exit", "one\ntwo\n")
    running = seen(executor, "lasting")
    assert running is not None
    assert running.state == "running"
    (lasting.run_folder / "work/go").touch()
    ended = wait_until_exited(executor, "lasting")
    assert (ended.exit_code, ended.cause, log_of(lasting)) == (0, "exit", "one\ntwo\n")
    assert bench.starts(lasting) == 1
    assert json.loads((lasting.run_folder / "result.json").read_text())["exit_code"] == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_containers_that_die_with_their_engine_are_lost_and_the_program_is_not_started_again(
    docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    daemon = new_daemon(keeps_containers=False)
    try:
        daemon.start()
        bench = DockerBench(tmp_path, daemon.url, daemon.images.python)
        executor = bench.executor()
        launch = make_launch(tmp_path, "a", SLEEP)
        executor.start(launch)
        wait_for(lambda: bench.starts(launch), "the program")
        daemon.restart()
        executor.start(launch)
        ended = wait_until_exited(executor, "a")
        assert (ended.cause, ended.exit_code in (137, 143)) == ("lost", True)
        executor.start(launch)
        assert bench.starts(launch) == 1
    finally:
        daemon.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_booked_gpus_reach_the_container_and_without_a_driver_the_reason_is_told(
    docker: DockerBench, tmp_path: Path
) -> None:
    source = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'], os.environ['CUDA_VISIBLE_DEVICES'])"
    launch = replace(make_launch(tmp_path, "a", source, resources=Resources(gpus=1)), gpus=("GPU-7", "MIG-8"))
    with pytest.raises(ExecutorError, match=r"could not select device driver.*NVIDIA container toolkit"):
        docker.executor().start(launch)
    failed = seen(docker.executor(), "a")
    assert failed is not None
    assert (failed.state, failed.cause) == ("exited", "lost")
    assert "NVIDIA container toolkit" in failed.warning
    daemon = new_daemon(has_gpu_driver=True)
    try:
        daemon.start()
        bench = DockerBench(tmp_path / "with", daemon.url, daemon.images.python)
        executor = bench.executor()
        launch = replace(launch, name="b")
        executor.start(launch)
        ended = wait_until_exited(executor, "b")
        assert ended.exit_code == 0, log_of(launch)
        assert log_of(launch) == "GPU-7,MIG-8 GPU-7,MIG-8\n"
        request = daemon.client.inspect_container("clavier-b")["HostConfig"]["DeviceRequests"][0]
        assert (request["Driver"], request["DeviceIDs"], request["Count"]) == ("nvidia", ["GPU-7", "MIG-8"], 0)
        assert daemon.client.inspect_container("clavier-b")["HostConfig"]["PidsLimit"] == 4096
    finally:
        daemon.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_benchmark_of_racing_starters_finds_each_started_exactly_once(docker_daemon: DockerDaemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.launches"], cwd=REPOSITORY, capture_output=True, text=True, timeout=170,
        env={**os.environ, "LAUNCHES": "20", "RACERS": "8"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    assert (facts["launches"], facts["racers"], facts["started_exactly_once"]) == (20, 8, 20)
