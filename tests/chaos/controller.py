"""One campaign: a platform of its own, jobs, faults from a seed, and the verdict in one line."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import NAMESPACE_OID, UUID, uuid5

from tests.chaos.faults import Scene, faults_of
from tests.chaos.judge import FINAL, Judgement, Told, judge, p95
from tests.chaos.kinds import IMPORT, Kind, gpu_names, kind_of
from tests.chaos.platform_process import PlatformProcess, base_environment
from tests.chaos.servers import Dockerd, PostgreSQL, Redis, Server
from tests.chaos.timeline import Sampler, Timeline
from tests.docker_engine import program_binds

Result = TypeVar("Result")
STEPS, STEP_S = 8, 0.25
#: How long the platform has, once nothing is done to it any more, to bring every run to its end.
SETTLE_S = 240.0
#: An invariant may be on its way to hold for this long (I4, I6, I8 say a minute).
CLEAN_UP_S = 90.0
WORKERS = 2
#: After this share of the faults the next one waits for a leader, but no longer than some seconds.
RECOVERS, RECOVERY_S = 0.7, 20.0
#: How likely a job that is to be stopped is stopped between two faults.
STOPS = 0.2
#: A borrower that nobody asked to make room for so long after the faults is let go.
NOBODY_CAME_S = 60.0
#: A leader that was not heard of for longer than this is none.
LEASE_S = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. ``pause_s``: mean time between faults."""

    faults: int
    jobs: int
    seed: int
    executor: str
    database: str
    pause_s: float = 1.5


class Campaign:
    """Owns a folder, the servers and the platform in it; ``close`` leaves nothing behind."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(tempfile.mkdtemp(prefix="clavier-chaos-"))
        self.folder.chmod(0o755)
        self.home, self.journals = self.folder / "home", self.folder / "journals"
        for folder in (self.home, self.journals):
            folder.mkdir(mode=0o755)
        self.environment = base_environment(self.home)
        self.servers: dict[str, Server] = {}
        self.dockerd: Dockerd | None = None
        self.image: str | None = None
        self.began_at = time.time()
        self.timeline = Timeline()
        self.jobs: dict[str, UUID] = {}
        self.kinds: dict[str, Kind] = {}
        self.stopped: set[str] = set()

    def run(self) -> dict[str, Any]:
        """Everything; the facts of the line."""
        plan = self.plan
        self.start_servers()
        self.platform = PlatformProcess(self.home, self.environment)
        self.platform.start()
        self.platform.wait_until_ready()
        self.connect()
        self.say(f"campaign: {plan}")
        scene = Scene(self.platform, random.Random(plan.seed), self.servers, timeline=self.timeline)
        scene.is_watched = self.is_watched
        if self.dockerd is not None:
            scene.containers, scene.kill_container = self.dockerd.containers, self.dockerd.kill_container
            scene.proxy = self.dockerd.proxy
        sampler = Sampler(self.timeline, lambda: self.inside.try_to(self.inside.watcher))
        sampler.start()
        self.hurt(scene)
        self.heal(scene)
        told = self.wait_for_the_end()
        sampler.stop()
        found = judge(self.journals, told, STEPS, self.kinds)
        imports = [name for name, kind in self.kinds.items() if kind == IMPORT]
        found.lost += patiently(lambda: self.inside.unfinished_imports(imports))
        leaked = self.leaks()
        self.tell_details(found, leaked)
        return self.line(told, found, leaked)

    def line(self, told: dict[str, Told | None], found: Judgement, leaked: list[str]) -> dict[str, Any]:
        """The facts that a campaign prints."""
        plan, timeline = self.plan, self.timeline
        self.say(f"adoptions: {sorted(round(seconds, 1) for seconds in timeline.adoptions_in_service())}")
        rows = [row for row in told.values() if row is not None]
        ends = [
            (row.left_at, row.ended_at) for row in rows if row.state == "COMPLETED" and row.left_at and row.ended_at
        ]
        return {
            "jobs": len(self.jobs),
            "faults": plan.faults,
            "seed": plan.seed,
            "executor": plan.executor,
            "database": plan.database,
            "lost": len(found.lost),
            "duplicated": len(found.duplicated),
            "overlapping": len(found.overlapping),
            "leaked": len(leaked),
            "stuck": len(found.stuck),
            "adoption_p95_s": p95(timeline.adoptions()),
            "adoption_in_service_p95_s": p95(timeline.adoptions_in_service()),
            "exit_noticed_p95_s": p95([until - since for since, until in ends]),
            "exit_noticed_in_service_p95_s": p95([timeline.in_service(since, until) for since, until in ends]),
            "attempts": sum(row.attempts for row in rows),
            "stopped": sum(row.state == "STOPPED" for row in rows),
            "preempted": sum(row.preempted for row in rows),
            "gangs": sum(kind.ranks > 1 for kind in self.kinds.values()),
            "gpu_jobs": sum(kind.gpus > 0 for kind in self.kinds.values()),
            "imports": sum(kind == IMPORT for kind in self.kinds.values()),
            "creates_spoilt": self.dockerd.proxy.refused + self.dockerd.proxy.lost if self.dockerd is not None else 0,
            "load_per_core": round(sum(timeline.loads) / len(timeline.loads), 1),
            "seconds": round(time.time() - self.began_at),
        }

    def start_servers(self) -> None:
        """What this kind of platform has outside of itself."""
        if self.plan.database == "postgresql":
            postgresql, redis = PostgreSQL(self.folder / "postgresql"), Redis(self.folder / "redis")
            self.servers |= {"postgresql": postgresql, "redis": redis}
            self.environment |= {"DATABASE_URL": postgresql.url, "REDIS_URL": redis.url}
        for server in self.servers.values():
            server.start()
        if self.plan.executor == "docker_engine":
            self.dockerd = Dockerd()
            self.servers["dockerd"], self.image = self.dockerd, self.dockerd.image
            self.environment |= {
                "CLAVIER_EXECUTOR": "docker_engine",
                "DOCKER_ENGINE_URL": self.dockerd.proxy.url,
                "DOCKER_PROGRAM_IMAGE": self.dockerd.image,
                "DOCKER_PROGRAM_PYTHON": sys.executable,
                "DOCKER_PROGRAM_BINDS": ",".join(program_binds()),
            }

    def connect(self) -> None:
        """Become a Django process of this platform: jobs are submitted and looked at through its own services."""
        os.environ.update(self.environment)
        import django  # the settings are known only now

        django.setup()
        from tests.chaos import inside

        self.inside = inside
        self.people = patiently(inside.make_people)
        gpus = gpu_names(self.folder.name.rpartition("-")[2].replace("_", "x"))
        (self.journals / "gpus").mkdir()
        for name in gpus:
            (self.journals / "gpus" / name).touch()
        patiently(lambda: inside.declare_gpus(gpus))

    def hurt(self, scene: Scene) -> None:
        """The faults, with a job submitted here and there among them."""
        plan, dice = self.plan, scene.dice
        known = faults_of(plan.executor, plan.database)
        names = [name for name, (_, weight) in known.items() for _ in range(weight)]
        done = 0
        while done < plan.faults or len(self.jobs) < plan.jobs:
            while len(self.jobs) < plan.jobs and len(self.jobs) * plan.faults <= done * plan.jobs:
                self.submit(len(self.jobs))
            if done < plan.faults:
                what = known[dice.choice(names)][0](scene)
                done += bool(what)
                self.say(f"fault {done}: {what}" if what else "nothing there to hurt")
                time.sleep(dice.expovariate(1 / plan.pause_s) if what else 0.2)
                if what and dice.random() < RECOVERS:
                    self.let_recover()
            self.interfere(dice.random)

    def submit(self, number: int) -> None:
        """Submit once, whatever dies meanwhile: a commit whose answer was lost is looked for, not repeated."""
        name, kind = f"job-{number:03d}", kind_of(number)
        self.kinds[name] = kind
        if kind == IMPORT:
            self.jobs[name] = patiently(lambda: self.inside.import_once(self.people.owner, name))
            return
        folder = self.journals / name
        folder.mkdir(exist_ok=True)
        self.jobs[name] = uuid5(NAMESPACE_OID, f"{self.folder}/{name}")
        actor = self.people.borrower if kind.is_borrower else self.people.owner
        words = ("job.py", str(folder), str(STEPS), str(STEP_S))
        patiently(lambda: self.inside.submit_once(actor, name, self.jobs[name], words, folder, self.image, kind))

    def named(self, kind: str) -> dict[str, UUID]:
        """The jobs of a kind."""
        return {name: subject for name, subject in self.jobs.items() if self.kinds[name].name == kind}

    def interfere(self, chance: Callable[[], float], *, at_last: bool = False) -> None:
        """Stop some of the jobs that are to be stopped (``at_last`` all), let go those that have made room."""
        for name, subject_id in self.named("stopped").items():
            if name not in self.stopped and (at_last or chance() < STOPS):
                patiently(lambda subject_id=subject_id: self.inside.stop(subject_id))  # type: ignore[misc]
                self.stopped.add(name)
        rows = self.inside.try_to(lambda: self.inside.tell(self.named("borrower"))) or {}
        for name, row in rows.items():
            if row is not None and row.preempted:
                (self.journals / name / "go").touch()

    def let_recover(self) -> None:
        """Until somebody leads, at most for a while: most faults meet a working platform, the others one in pieces."""
        deadline = time.monotonic() + RECOVERY_S
        while not self.is_watched() and time.monotonic() < deadline:
            self.platform.revive()
            time.sleep(0.2)

    def is_watched(self) -> bool:
        """Somebody has adopted the runs after the last one had died, and still leads."""
        seen = self.inside.try_to(self.inside.watcher)
        is_adopted = not self.timeline.died_at or self.timeline.adopted_at(max(self.timeline.died_at)) is not None
        return is_adopted and seen is not None and seen[1] > time.time() - LEASE_S

    def heal(self, scene: Scene) -> None:
        """Nothing is done to it any more; what was frozen moves, what was killed is there again."""
        for timer in scene.frozen:
            timer.join()
        for server in self.servers.values():
            if not server.answers():
                server.start()
        self.platform.wait_until_ready()

    def wait_for_the_end(self) -> dict[str, Told | None]:
        """Until every run is final, or the time for it is over."""
        began = time.time()
        while True:
            waited_s = time.time() - began
            self.interfere(lambda: 1.0, at_last=True)
            if waited_s > NOBODY_CAME_S:
                for name in self.named("borrower"):
                    (self.journals / name / "go").touch()
            told = patiently(lambda: self.inside.tell(self.jobs))
            open_ones = [name for name, row in told.items() if row is not None and row.state not in FINAL]
            if not open_ones or waited_s > SETTLE_S:
                return told
            time.sleep(0.5)

    def leaks(self) -> list[str]:
        """What should not be there any more, given the time that the invariants give."""
        deadline = time.time() + CLEAN_UP_S
        while True:
            found = [f"process {process.pid} lives on" for process in self.platform.wrappers()]
            found += [f"program {process.pid} lives on" for process in self.platform.programs()]
            containers = self.dockerd.containers(only_running=False) if self.dockerd is not None else []
            found += [f"container {name} is left" for name in containers]
            found += [f"{len(workers)} workers" for workers in [self.main_workers()] if len(workers) != WORKERS]
            checked = self.platform.manage("check_invariants", "--json", "--install")
            try:
                report = json.loads(checked.stdout.splitlines()[-1])
                found += [f"{item['invariant']}: {item['message']}" for item in report["findings"]]
                found += [f"silent: {name}" for name in report["silent"]]
            except (ValueError, IndexError):
                found.append(f"check_invariants ended with {checked.returncode}: {checked.stderr[-500:]}")
            if not found or time.time() > deadline:
                return found
            time.sleep(2)

    def main_workers(self) -> list[int]:
        """Workers, without the short-lived forks that do their jobs."""
        found = self.platform.named("worker")
        ids = {process.pid for process in found}
        return [process.pid for process in found if process.ppid() not in ids]

    def tell_details(self, found: Judgement, leaked: list[str]) -> None:
        """Each thing that went wrong, in words, on standard error."""
        for kind, sentences in {**vars(found), "leaked": leaked}.items():
            for sentence in sentences:
                self.say(f"{kind}: {sentence}")

    def say(self, text: str) -> None:
        """A line for people."""
        sys.stderr.write(f"{time.time() - self.began_at:7.1f} s  {text}\n")
        sys.stderr.flush()

    def close(self, *, keep: bool) -> None:
        """Stop everything; with ``keep`` the folder stays for a look."""
        if hasattr(self, "platform"):
            self.platform.stop()
        for server in self.servers.values():
            server.stop()
        if keep:
            self.say(f"kept {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def patiently(verb: Callable[[], Result], within_s: float = 90.0) -> Result:
    """A verb of the inside that may meet a dead database. Raises TimeoutError."""
    from tests.chaos.inside import NOT_NOW, forget_connections

    deadline = time.monotonic() + within_s
    while True:
        try:
            return verb()
        except NOT_NOW as error:
            forget_connections()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the database did not come back: {error}") from error
            time.sleep(0.3)


def campaign(plan: Plan, *, keep: bool = False) -> dict[str, Any]:
    """Run one; what failed inside leaves nothing running."""
    made = Campaign(plan)
    ended_well = False
    try:
        line = made.run()
        ended_well = True
        return line
    finally:
        made.close(keep=keep or not ended_well)


def new_seed() -> int:
    """A seed that the line names, so that it can be given again."""
    return secrets.randbelow(10**6)
