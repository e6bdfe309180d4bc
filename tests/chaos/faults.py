"""What a campaign does to a platform: each fault is one function which says what it hit, or nothing."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from tests.chaos.engine_proxy import EngineProxy
from tests.chaos.platform_process import PlatformProcess, end, tree
from tests.chaos.servers import Redis, Server
from tests.chaos.timeline import Timeline

LONGEST_FREEZE_S = 6.0


@dataclass
class Scene:
    """What faults act upon.

    ``is_watched``: a reconciler has the lead, so killing it is news; a platform that is killed over and over before it
    has started proves nothing.
    """

    platform: PlatformProcess
    dice: random.Random
    servers: dict[str, Server] = field(default_factory=dict)
    containers: Callable[[], list[str]] = list
    kill_container: Callable[[str], None] = lambda name: None
    is_watched: Callable[[], bool] = lambda: True
    timeline: Timeline = field(default_factory=Timeline)
    proxy: EngineProxy | None = None
    frozen: list[threading.Timer] = field(default_factory=list)

    def one(self, found: list[psutil.Process]) -> psutil.Process | None:
        """Any of them."""
        return self.dice.choice(found) if found else None


Fault = Callable[[Scene], str]


def kill_part(part: str) -> Fault:
    """SIGKILL to one process of a part; the supervisor starts it again."""

    def fault(scene: Scene) -> str:
        victim = scene.one(scene.platform.named(part))
        if victim is None or (part == "reconciler" and not scene.is_watched()):
            return ""
        if part == "reconciler":
            scene.timeline.died_at.append(time.time())
        end(victim)
        return f"killed {part} {victim.pid}"

    return fault


def freeze_part(part: str) -> Fault:
    """SIGSTOP, and CONT some seconds later: it wakes up in a world that has moved on."""

    def fault(scene: Scene) -> str:
        victim = scene.one(scene.platform.named(part))
        if victim is None:
            return ""
        seconds = scene.dice.uniform(1, LONGEST_FREEZE_S)
        victim.suspend()
        if part == "reconciler":
            began = time.time()
            timer = threading.Timer(seconds, lambda: (thaw(victim), scene.timeline.away.append((began, time.time()))))
        else:
            timer = threading.Timer(seconds, thaw, [victim])
        timer.start()
        scene.frozen.append(timer)
        return f"froze {part} {victim.pid} for {seconds:.1f} s"

    return fault


def thaw(process: psutil.Process) -> None:
    """CONT, if it still is."""
    try:
        os.kill(process.pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def kill_platform(scene: Scene) -> str:
    """The whole of it, supervisor first; it is started again at once."""
    if not scene.is_watched():
        return ""
    scene.timeline.died_at.append(time.time())
    with scene.timeline.outage():  # a service manager, too, waits until the last process is gone
        scene.platform.kill()
    scene.platform.start()
    return "killed the whole platform"


def kill_wrapper(scene: Scene) -> str:
    """SIGKILL to the wrapper or the keeper of an attempt."""
    victim = scene.one(scene.platform.wrappers())
    if victim is None:
        return ""
    end(victim)
    return f"killed wrapper {victim.pid}"


def kill_program(scene: Scene) -> str:
    """SIGKILL to a job itself: from outside, so the platform has to try again."""
    victim = scene.one([one for wrapper in scene.platform.wrappers() for one in tree(wrapper) if is_job(one)])
    if victim is None:
        return ""
    end(victim)
    return f"killed program {victim.pid}"


def is_job(process: psutil.Process) -> bool:
    """One of the campaign's programs."""
    try:
        return any(word.endswith("job.py") for word in process.cmdline())
    except psutil.Error:
        return False


def kill_container(scene: Scene) -> str:
    """SIGKILL to what runs in a container, by its engine's own tool."""
    names = scene.containers()
    if not names:
        return ""
    name = scene.dice.choice(names)
    scene.kill_container(name)
    return f"killed container {name}"


def crash_server(name: str) -> Fault:
    """SIGKILL to a server, and after a moment it is there again."""

    def fault(scene: Scene) -> str:
        server = scene.servers[name]
        with scene.timeline.outage():
            scene.dice.choice([server.kill, server.stop])() if name == "postgresql" else server.kill()
            time.sleep(scene.dice.uniform(0, 2))
            server.start()
        return f"crashed {name}"

    return fault


def flush_redis(scene: Scene) -> str:
    """The queue forgets everything."""
    server = scene.servers["redis"]
    assert isinstance(server, Redis)
    server.flush()
    return "emptied redis"


def refuse_creates(scene: Scene) -> str:
    """The engine makes no containers for a while."""
    assert scene.proxy is not None
    seconds = scene.dice.uniform(1, LONGEST_FREEZE_S)
    scene.proxy.refuse_creates(seconds)
    return f"the engine refuses to create for {seconds:.1f} s"


def lose_answers(scene: Scene) -> str:
    """The engine makes containers, and the connection breaks before it says so."""
    assert scene.proxy is not None
    seconds = scene.dice.uniform(1, LONGEST_FREEZE_S)
    scene.proxy.lose_answers(seconds)
    return f"the engine's answers to create are lost for {seconds:.1f} s"


#: How often each kind comes, in parts.
COMMON: dict[str, tuple[Fault, int]] = {
    "web": (kill_part("web"), 2),
    "front": (kill_part("front"), 1),
    "worker": (kill_part("worker"), 6),
    "reconciler": (kill_part("reconciler"), 5),
    "frozen reconciler": (freeze_part("reconciler"), 2),
    "frozen worker": (freeze_part("worker"), 2),
    "platform": (kill_platform, 2),
}
EXECUTORS: dict[str, dict[str, tuple[Fault, int]]] = {
    "local_process": {"wrapper": (kill_wrapper, 4), "program": (kill_program, 3)},
    "docker_engine": {
        "container": (kill_container, 5),
        "dockerd": (crash_server("dockerd"), 2),
        "refused creates": (refuse_creates, 2),
        "lost answers": (lose_answers, 2),
    },
}
DATABASES: dict[str, dict[str, tuple[Fault, int]]] = {
    "sqlite": {"valkey": (kill_part("valkey"), 3)},
    "postgresql": {
        "postgresql": (crash_server("postgresql"), 3),
        "redis": (crash_server("redis"), 3),
        "emptied redis": (flush_redis, 2),
    },
}


def faults_of(executor: str, database: str) -> dict[str, tuple[Fault, int]]:
    """Every fault that makes sense for a platform of this kind."""
    return COMMON | EXECUTORS[executor] | DATABASES[database]
