"""What a container may be: asked for exactly, compared exactly, and seen from inside."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contract.run_spec import Limits, Mount, Resources
from runner.executors.base import Launch, LaunchRefused
from runner.executors.docker_mounts import replaceable_folder
from runner.executors.docker_profile import (
    MountPoint,
    ProfileMismatch,
    Surroundings,
    assert_profile,
    container_profile,
)
from runner.executors.launching import REPOSITORY
from tests.docker_engine import DockerDaemon
from tests.runner.executors.bench import DockerBench, make_launch, wait_until_exited

pytestmark = pytest.mark.docker

GPUS = ("GPU-00000000-0000-0000-0000-000000000001", "GPU-00000000-0000-0000-0000-000000000002")


@pytest.fixture
def made(docker_daemon: DockerDaemon, tmp_path: Path):
    """What the engine says of a container made from a full profile, with the payload and the image."""
    launch = replace(make_launch(tmp_path, "profile", argv=("/noop",), resources=Resources(gpus=2)), gpus=GPUS)
    image = docker_daemon.client.inspect_image(docker_daemon.images.noop)
    mounts = (MountPoint(str(launch.run_folder), str(launch.run_folder)),)
    around = Surroundings(image["Id"], {"clavier.name": "profile"}, mounts, {}, sys.executable)
    payload = container_profile(launch, around)
    client = docker_daemon.client
    container = client.create_container_from_config(payload, "clavier-profile")["Id"]
    yield client.inspect_container(container), payload, image
    client.remove_container(container)


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one field of what the engine says."""

    def mutate(inspected: dict[str, Any]) -> None:
        place: Any = inspected
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    mutate.__name__ = f"{'.'.join(map(str, path))}={value!r}"[:80]
    return mutate


def add(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Append to one list of what the engine says."""

    def mutate(inspected: dict[str, Any]) -> None:
        place: Any = inspected
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = [*(place[path[-1]] or []), value]

    mutate.__name__ = f"{'.'.join(map(str, path))}+{value!r}"[:80]
    return mutate


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """Empty one field of what the engine says."""
    mutate = put(*path, value=None)
    mutate.__name__ = f"{'.'.join(map(str, path))} dropped"
    return mutate


HOST = [
    ("CapAdd", ["SYS_ADMIN"]), ("CapDrop", None), ("CapDrop", ["NET_RAW"]), ("Privileged", True),
    ("SecurityOpt", None), ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
    ("SecurityOpt", ["no-new-privileges", "apparmor=unconfined"]), ("ReadonlyRootfs", False), ("Init", False),
    ("Init", None), ("AutoRemove", True), ("PublishAllPorts", True), ("Memory", 0), ("Memory", 1 << 40),
    ("MemorySwap", -1), ("MemorySwap", 0), ("MemoryReservation", 1), ("MemorySwappiness", 60), ("NanoCpus", 0),
    ("CpuQuota", 5), ("CpuShares", 4096), ("CpusetCpus", "0"), ("CpuRealtimeRuntime", 1), ("PidsLimit", None),
    ("PidsLimit", -1), ("ShmSize", 1 << 40), ("OomScoreAdj", -1000), ("OomKillDisable", True), ("Ulimits", None),
    ("NetworkMode", "host"), ("NetworkMode", "bridge"), ("NetworkMode", "container:x"), ("IpcMode", "host"),
    ("IpcMode", "shareable"), ("PidMode", "host"), ("UTSMode", "host"), ("UsernsMode", "host"),
    ("CgroupnsMode", "host"), ("CgroupParent", "/other"), ("RestartPolicy", {"Name": "always"}),
    ("LogConfig", {"Type": "none", "Config": {}}), ("LogConfig", {"Type": "json-file", "Config": {}}),
    ("Runtime", "nvidia"), ("DeviceCgroupRules", ["a *:* rwm"]), ("DeviceRequests", None), ("GroupAdd", ["0"]),
    ("Binds", ["/:/host"]), ("VolumesFrom", ["x"]), ("VolumeDriver", "x"), ("Links", ["x"]), ("ExtraHosts", ["a:1"]),
    ("Dns", ["1.1.1.1"]), ("PortBindings", {"80/tcp": [{"HostPort": "80"}]}), ("Sysctls", {"net.a": "1"}),
    ("Tmpfs", {}), ("Tmpfs", {"/x": ""}),
    ("PortBindings", {"80/tcp": None}), ("StorageOpt", {"size": "1"}),
    ("MaskedPaths", []), ("ReadonlyPaths", []), ("Mounts", []),
    ("AFieldOfTheFuture", {"power": True}), ("Annotations", {"run": "x"}), ("ContainerIDFile", "/x"),
]  # fmt: skip
CONFIG = [
    ("User", ""), ("User", "0:0"), ("User", "200007"), ("Env", []), ("Cmd", ["/bin/sh"]), ("Entrypoint", ["/bin/sh"]),
    ("Image", "test:noop"), ("WorkingDir", "/"), ("Labels", {}), ("Healthcheck", None), ("Volumes", {"/data": {}}),
    ("Healthcheck", {"Test": ["CMD", "x"]}), ("StopSignal", "SIGKILL"), ("Tty", True), ("OpenStdin", True),
    ("ExposedPorts", {"80/tcp": {}}), ("OnBuild", ["x"]), ("Hostname", "other"), ("AFieldOfTheFuture", "x"),
]  # fmt: skip
DEVICE = {"PathOnHost": "/dev/mem", "PathInContainer": "/dev/mem", "CgroupPermissions": "rwm"}
SOCKET = {"Type": "bind", "Source": "/var/run/docker.sock", "Destination": "/s", "RW": True, "Propagation": "rprivate"}
MUTATIONS = [
    *(put("HostConfig", name, value=value) for name, value in HOST),
    *(put("Config", name, value=value) for name, value in CONFIG),
    add("HostConfig", "Devices", value=DEVICE),
    add("HostConfig", "Mounts", value={"Type": "bind", "Source": "/etc", "Target": "/host"}),
    add("HostConfig", "DeviceRequests", value={"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}),
    add("HostConfig", "Ulimits", value={"Name": "memlock", "Soft": -1, "Hard": -1}),
    put("HostConfig", "Ulimits", 0, "Hard", value=1 << 20),
    put("HostConfig", "DeviceRequests", 0, "DeviceIDs", value=["GPU-another"]),
    put("HostConfig", "DeviceRequests", 0, "Count", value=-1),
    put("HostConfig", "Mounts", 0, "ReadOnly", value=False),
    put("HostConfig", "Mounts", 0, "Source", value="/etc"),
    put("HostConfig", "Mounts", 0, "BindOptions", "Propagation", value="rshared"),
    add("Config", "Env", value="LD_PRELOAD=/x.so"),
    put("Config", "Labels", "clavier.tenant", value="another"),
    add("Mounts", value=SOCKET),
    put("Mounts", 0, "RW", value=True),
    put("Mounts", 0, "Propagation", value="rshared"),
    put("Mounts", 0, "Source", value="/"),
    put("Image", value="sha256:another"),
    put("Path", value="/bin/sh"),
    add("Args", value="x"),
    put("AppArmorProfile", value="unconfined"),
    put("ExecIDs", value=["x"]),
    put("Platform", value="windows"),
    put("NetworkSettings", "Networks", value={"bridge": {}}),
    put("NetworkSettings", "Networks", "none", "Aliases", value=["rank-0"]),
    put("NetworkSettings", "Ports", value={"80/tcp": [{"HostPort": "80"}]}),
    put("AFieldOfTheFuture", value="x"),
]


def test_what_the_engine_makes_of_a_profile_is_that_profile(made) -> None:
    inspected, payload, image = made
    assert_profile(inspected, payload, image, "runc")


def test_there_are_many_mutations() -> None:
    assert len(MUTATIONS) >= 100


def test_every_single_mutation_of_a_profile_is_refused(made) -> None:
    inspected, payload, image = made
    missed = []
    for mutate in MUTATIONS:
        changed = copy.deepcopy(inspected)
        mutate(changed)
        assert changed != inspected, mutate.__name__
        try:
            assert_profile(changed, payload, image, "runc")
            missed.append(mutate.__name__)
        except ProfileMismatch:
            continue
    assert missed == []


def test_a_mismatch_names_the_field_and_both_values(made) -> None:
    inspected, payload, image = made
    inspected["HostConfig"]["Privileged"] = True
    with pytest.raises(ProfileMismatch, match=r"HostConfig.Privileged is True instead of False"):
        assert_profile(inspected, payload, image, "runc")


PROBE = """
import glob, json, os, resource, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
mounts = {line.split()[1]: (line.split()[2], line.split()[3].split(",")) for line in open("/proc/mounts")}
def tries(action):
    try:
        action()
        return "done"
    except OSError as error:
        return os.strerror(error.errno)
def executes(folder):
    path = folder + "/script"
    with open(path, "w") as stream:
        stream.write("#!/nothing")
    os.chmod(path, 0o755)
    return tries(lambda: os.execv(path, [path]))
children = []
def fork_on():
    while True:
        pid = os.fork()
        if pid == 0:
            import time; time.sleep(60)
            os._exit(0)
        children.append(pid)
told = {
    "ids": os.getresuid() + os.getresgid(), "groups": os.getgroups(),
    "status": {key: status[key].strip() for key in status if key[:3] in ("Cap", "NoN", "Sec")},
    "mounts": mounts, "root": tries(lambda: open("/made", "w")), "run_folder": tries(lambda: open("../made", "w")),
    "spec": tries(lambda: open("../log-9.txt", "w")), "tmp": executes("/tmp"), "work": executes("/work"),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "network": tries(lambda: socket.create_connection(("10.233.0.1", 80), 2)),
    "dev": sorted(os.listdir("/dev")), "pid_one": open("/proc/1/comm").read().strip(),
    "processes": len(glob.glob("/proc/[0-9]*")), "sockets": glob.glob("/**/docker.sock", recursive=False),
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "tmp_size": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
    "limits": [resource.getrlimit(what) for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)],
    "oom": open("/proc/self/oom_score_adj").read().strip(), "wrapper": tries(lambda: open("/clavier/wrapper", "r+")),
    "orders": tries(lambda: open("/clavier/orders/stop", "w")), "others": os.path.exists(OTHER),
    "etc": tries(lambda: open("/etc/shadow")), "sysrq": tries(lambda: open("/proc/sys/kernel/core_pattern", "w")),
    "mknod": tries(lambda: os.mknod("node", 0o600 | 0o020000, os.makedev(1, 3))),
    "chroot": tries(lambda: os.chroot("/")), "setuid": tries(lambda: os.setuid(0)),
    "unshare": tries(lambda: os.unshare(0x10000000)) if hasattr(os, "unshare") else "Operation not permitted",
    "environment": dict(os.environ), "forks": tries(fork_on), "children": len(children),
}
print(json.dumps(told))
"""


def test_a_program_sees_exactly_its_profile_from_inside(docker: DockerBench, tmp_path: Path) -> None:
    neighbour = tmp_path / "runs/neighbour"
    neighbour.mkdir(parents=True)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("w")
    launch = make_launch(
        tmp_path, "probe", PROBE.replace("OTHER", repr(str(neighbour))), mounts=(Mount(str(model)),),
        resources=Resources(memory_mib=256, shm_mib=8), limits=Limits(time_limit_s=60, max_processes=64),
        environment={"OWN": "2", "LD_PRELOAD": "/x.so", "NVIDIA_VISIBLE_DEVICES": "all"},
    )  # fmt: skip
    executor = docker.executor()
    executor.start(launch)
    ended = wait_until_exited(executor, "probe")
    log = (launch.run_folder / "log.txt").read_text()
    assert ended.exit_code == 0, log
    seen = json.loads(log)
    run = str(launch.run_folder)
    assert seen["ids"] == [200_007] * 6
    assert seen["groups"] in ([], [200_007])
    status = seen["status"]
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert [seen[key] for key in ("root", "run_folder", "spec", "orders")] == ["Read-only file system"] * 4
    assert seen["wrapper"] == "Permission denied"
    assert (seen["tmp"], seen["work"]) == ("Permission denied", "No such file or directory")  # noexec; no interpreter
    assert (seen["interfaces"], seen["network"]) == (["lo"], "Network is unreachable")
    default_dev = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
                   "tty", "urandom", "zero"}  # fmt: skip
    assert set(seen["dev"]) <= default_dev
    assert (seen["pid_one"], seen["processes"]) == ("docker-init", 3)
    assert seen["shm"] == 8 << 20
    assert seen["tmp_size"] == 64 << 20
    assert seen["limits"] == [[0, 0], [200 << 30, 200 << 30]]
    assert seen["oom"] == "500"
    assert seen["others"] is False
    assert seen["etc"] in ("No such file or directory", "Permission denied")
    assert seen["sysrq"] == "Read-only file system"
    assert [seen[key] for key in ("mknod", "chroot", "setuid")] == ["Operation not permitted"] * 3
    assert (seen["forks"], seen["children"]) == ("Resource temporarily unavailable", 64 - 3)
    mounts = seen["mounts"]
    assert "ro" in mounts["/"][1]
    assert {"noexec", "nosuid", "nodev"} <= set(mounts["/tmp"][1])
    assert {"nosuid", "nodev"} <= set(mounts["/work"][1]) - {"noexec"}
    for path in (run, str(model), "/clavier/wrapper", "/clavier/orders", sys.prefix):
        assert "ro" in mounts[path][1], path
    for path in (f"{run}/output", f"{run}/checkpoints", f"{run}/work", f"{run}/metrics.jsonl", f"{run}/log.txt"):
        assert "rw" in mounts[path][1], path
    environment = seen["environment"]
    assert environment["OWN"] == "2"
    assert (environment["LD_PRELOAD"], environment["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")
    assert environment["TRITON_CACHE_DIR"].startswith("/work/")
    assert not {"SECRET_KEY", "DATABASE_URL"} & set(environment)


@pytest.mark.parametrize("source", ["/etc", "/etc/passwd", "/", "/proc", "/dev/null", "/sys", "/run", "/var/run"])
def test_parts_of_the_machine_are_never_lent(docker: DockerBench, tmp_path: Path, source: str) -> None:
    with pytest.raises(LaunchRefused, match="never lent"):
        docker.executor().start(make_launch(tmp_path, "a", "pass", mounts=(Mount(source),)))
    assert docker.executor().list() == []


def test_the_data_of_the_platform_is_never_lent_as_a_whole(docker: DockerBench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "datasets/one").mkdir(parents=True)
    executor = docker.executor(closed=(home,))
    for source in (home, tmp_path, tmp_path / "control"):
        with pytest.raises(LaunchRefused, match="holds the platform's own"):
            executor.start(make_launch(tmp_path, "a", "pass", mounts=(Mount(str(source)),)))
    executor.start(make_launch(tmp_path, "a", "pass", mounts=(Mount(str(home / "datasets/one")),)))
    assert wait_until_exited(executor, "a").exit_code == 0


def test_a_socket_is_no_mount(docker: DockerBench, tmp_path: Path) -> None:
    path = docker.engine_url.removeprefix("unix://")
    with pytest.raises(LaunchRefused, match=r"neither a folder nor a file|can not be read"):
        docker.executor().start(make_launch(tmp_path, "a", "pass", mounts=(Mount(path),)))


def test_a_path_that_a_tenant_could_replace_is_refused(docker: DockerBench, tmp_path: Path) -> None:
    lent = tmp_path / "lent"
    (lent / "inner").mkdir(parents=True)
    os.chown(lent, 200_008, 200_008)
    assert replaceable_folder(str(lent / "inner")) == str(lent)
    assert replaceable_folder(str(lent)) is None
    launch: Launch = make_launch(tmp_path, "a", "pass", mounts=(Mount(str(lent / "inner")),))
    with pytest.raises(LaunchRefused, match=f"may write to {lent}"):
        docker.executor().start(launch)
    os.chown(lent, 0, 0)
    lent.chmod(0o777)
    assert replaceable_folder(str(lent / "inner")) == str(lent)
    lent.chmod(0o1777)
    assert replaceable_folder(str(lent / "inner")) is None


def test_a_mount_may_be_at_a_path_of_its_own(docker: DockerBench, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("here")
    launch = make_launch(
        tmp_path, "a", "print(open('/data/in/x').read())", mounts=(Mount(str(data), target="/data/in"),)
    )
    executor = docker.executor()
    executor.start(launch)
    assert wait_until_exited(executor, "a").exit_code == 0
    assert (launch.run_folder / "log.txt").read_text() == "here\n"


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/etc/x",
        "/proc",
        "/dev/shm",
        "/clavier",
        "/clavier/report/x",
        "/tmp/x",
        "/work",
        "//dev",
        "data",
        "/a/../etc",
    ],
)
def test_a_mount_never_lies_over_what_a_container_needs(docker: DockerBench, tmp_path: Path, target: str) -> None:
    launch = make_launch(tmp_path, "a", "pass", mounts=(Mount(str(tmp_path / "runs"), target=target),))
    with pytest.raises(LaunchRefused, match="Mount at"):
        docker.executor().start(launch)


def test_two_mounts_do_not_share_a_path(docker: DockerBench, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    mounts = (Mount(str(tmp_path / "one"), target="/data"), Mount(str(tmp_path / "two"), target="/data"))
    with pytest.raises(LaunchRefused, match="both want to be at /data"):
        docker.executor().start(make_launch(tmp_path, "a", "pass", mounts=mounts))
    run = make_launch(tmp_path, "b", "pass")
    inside = replace(run.spec, mounts=(Mount(str(tmp_path / "one"), target=f"{run.run_folder}/output"),))
    with pytest.raises(LaunchRefused, match="Mount at"):
        docker.executor().start(replace(run, spec=inside))


def test_an_image_with_the_programs_finds_them_by_itself(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, "a")
    launch = replace(launch, spec=replace(launch.spec, argv=(), program="runner.programs.train.sft"))
    around = Surroundings("sha256:x", {}, (), {}, "/usr/local/bin/python3")
    own = container_profile(launch, around)["Env"]
    carried = container_profile(launch, replace(around, has_programs=True))["Env"]
    assert [line for line in own if line not in carried] == [f"PYTHONPATH={REPOSITORY}"]
