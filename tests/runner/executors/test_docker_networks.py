"""The network of a run of several containers, the one to the outside, and none for all others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner.contract.folder import log_name
from runner.contract.run_spec import Resources
from runner.executors.base import Gang, Launch, LaunchRefused
from tests.docker_engine import DockerDaemon
from tests.runner.executors.bench import DockerBench, make_launch, wait_until_exited

pytestmark = pytest.mark.docker

MEET = """
import os, socket
address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if os.environ["RANK"] == "0":
    server = socket.create_server(("0.0.0.0", port))
    for _ in range(int(os.environ["WORLD_SIZE"]) - 1):
        connection, _ = server.accept()
        print("met", connection.recv(100).decode(), flush=True)
        connection.sendall(b"hello")
else:
    import time
    while True:
        try:
            connection = socket.create_connection((address, port), 2)
            break
        except OSError:
            time.sleep(0.05)
    connection.sendall(os.environ["RANK"].encode())
    print(connection.recv(100).decode())
print(sorted(name for _, name in socket.if_nameindex()))
try:
    socket.create_connection(("198.51.100.1", 80), 1)
except OSError:
    print("closed in")
"""


def gang_of(folder: Path, source: str, size: int = 2, network: str = "clavier-gang-x", **spec: object) -> list[Launch]:
    first = make_launch(folder, "gang", source, **spec)
    launches = []
    for rank in range(size):
        gang = Gang(rank, size, network, "rank-0")
        launches.append(replace(first, name=f"gang.{rank}", gang=gang, labels={"run": "gang"}))
    return launches


def networks(daemon: DockerDaemon) -> set[str]:
    return {network["Name"] for network in daemon.client.networks()} - {"bridge", "host", "none"}


def test_the_containers_of_a_run_meet_in_a_network_of_their_own_that_goes_with_the_last(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    launches = gang_of(tmp_path, MEET, size=3)
    for launch in launches:
        executor.start(launch)
    folder = launches[0].run_folder
    for rank, launch in enumerate(launches):
        ended = wait_until_exited(executor, launch.name)
        assert ended.exit_code == 0, (folder / log_name(rank)).read_text()
    assert "met 1" in (folder / "log.txt").read_text()
    assert "met 2" in (folder / "log.txt").read_text()
    for rank in (1, 2):
        log = (folder / f"log-{rank}.txt").read_text()
        assert log.splitlines() == ["hello", "['eth0', 'lo']", "closed in"]
        assert (folder / f"result-{rank}.json").is_file()
    seen = docker_daemon.client.inspect_network("clavier-gang-x")
    assert (seen["Internal"], seen["Labels"]["clavier.run"]) == (True, "gang")
    executor.remove("gang.0")
    executor.remove("gang.2")
    assert networks(docker_daemon) == {"clavier-gang-x"}
    executor.remove("gang.1")
    assert networks(docker_daemon) == set()


def test_a_network_of_the_operator_is_used_and_stays(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    docker_daemon.client.create_network("overlay-of-the-operator", driver="bridge", internal=True)
    try:
        executor = docker.executor()
        [launch] = gang_of(tmp_path, "pass", size=1, network="overlay-of-the-operator")
        executor.start(launch)
        assert wait_until_exited(executor, launch.name).exit_code == 0
        executor.remove(launch.name)
        assert networks(docker_daemon) == {"overlay-of-the-operator"}
    finally:
        docker_daemon.client.remove_network("overlay-of-the-operator")


def test_a_network_that_no_attempt_needs_is_cleaned(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    labels = {"clavier.install": docker.install_id, "clavier.network": "run"}
    docker_daemon.client.create_network("clavier-orphan", driver="bridge", labels=labels)
    executor = docker.executor()
    [launch] = gang_of(tmp_path, "pass", size=1)
    executor.start(launch)
    wait_until_exited(executor, launch.name)
    executor.remove(launch.name)
    assert networks(docker_daemon) == set()


def test_an_import_reaches_the_outside_and_no_other_container(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    source = "import os, socket; print([n for _, n in socket.if_nameindex()], 'HF_HUB_OFFLINE' in os.environ)"
    launch = make_launch(tmp_path, "a", source, needs_network=True)
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0
    assert (launch.run_folder / "log.txt").read_text() == "['lo', 'eth0'] False\n"
    [name] = networks(docker_daemon)
    seen = docker_daemon.client.inspect_network(name)
    assert seen["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    executor.remove("a")
    docker_daemon.client.remove_network(name)


def test_a_gang_has_no_way_to_the_outside(docker: DockerBench, tmp_path: Path) -> None:
    [launch] = gang_of(tmp_path, "pass", size=1, needs_network=True)
    with pytest.raises(LaunchRefused, match="none to the outside"):
        docker.executor().start(launch)
    assert docker.executor().list() == []


ALL_REDUCE = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
value = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(value)
print(dist.get_world_size(), value.item())
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_torch_adds_up_over_two_containers(docker: DockerBench, tmp_path: Path) -> None:
    executor = docker.executor()
    launches = gang_of(tmp_path, ALL_REDUCE, environment={"OMP_NUM_THREADS": "1"}, resources=Resources(memory_mib=1024))
    for launch in launches:
        executor.start(launch)
    for rank, launch in enumerate(launches):
        ended = wait_until_exited(executor, launch.name, 100)
        assert ended.exit_code == 0, (launch.run_folder / log_name(rank)).read_text()
    assert (launches[0].run_folder / "log-1.txt").read_text() == "2 3.0\n"
