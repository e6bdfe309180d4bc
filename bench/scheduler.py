"""P7: the scheduler with 10,000 waiting runs of 200 tenants, on SQLite and on PostgreSQL with fsync.

``python -m bench.scheduler [sqlite|postgresql]``. Each database is new and lies in a temporary folder. In each round:

* ``pass_full``: one pass while nothing fits; ``pass_room``: one pass right after five runs have ended.
* ``durable``: admissions a second when a plan is carried out (reservations, devices, attempt, event, state), with
  PostgreSQL's and SQLite's commit guarantees as the platform sets them; ``admission``: the same with reading and
  planning, in one pass over what is left of the cluster.
* ``claim``: from before ``submit_run`` to the committed PREPARING of a run that fits, by a pass in the same process,
  with the backlog standing. The queue's own latency is not in it.
* ``naive``: the row-by-row scheduler that this one replaced, over the first waiting runs only, given as seconds a run.

CPU time is this process's and the database server's; the wall time beside it says how busy the machine was. Before
anything else is timed, the plan over the runs that the window reads is compared with the plan over all of them.
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "scheduler.json"
TENANTS, USERS_EACH, BACKLOG = 200, 2, 10_000
NODES, GPUS_EACH, CPU_MILLI, MEMORY_MIB = 100, 8, 64_000, 512 * 1024
CARRIED = 500
PASSES, CLAIMS, NAIVE_RUNS = 15, 200, 20
FIRST_FOR_PARITY = 512


def main() -> None:
    """Measure each database in a process of its own, then write the lines down."""
    asked = sys.argv[1:] or ["sqlite", "postgresql"]
    lines: list[str] = []
    for name in asked:
        with {"sqlite": sqlite, "postgresql": postgresql}[name]() as (url, home, server):
            environment = {**os.environ, "DATABASE_URL": url, "CLAVIER_HOME": home, "BENCH_INSIDE": name}
            environment["BENCH_SERVER"] = str(server)
            environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'platform'}"
            done = subprocess.run(
                [sys.executable, "-m", "bench.scheduler"], env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True
            )
        lines += done.stdout.decode().splitlines()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


@contextmanager
def sqlite() -> Iterator[tuple[str, str, int]]:
    """The settings' own SQLite (WAL, synchronous=NORMAL): its URL, a home, and no server."""
    with tempfile.TemporaryDirectory(prefix="clavier-bench-") as home:
        yield f"sqlite:///{home}/bench.sqlite3", home, 0


@contextmanager
def postgresql() -> Iterator[tuple[str, str, int]]:
    """A new cluster as ``initdb`` makes it, fsync and all, on a free port of the loopback interface; its process."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory(prefix="clavier-pg-") as place:
        as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(place, account.pw_uid, account.pw_gid)
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "check": True, "cwd": place}
        subprocess.run(
            [*as_user, str(binaries[-1] / "initdb"), "-D", f"{place}/data", "-U", "clavier", "-A", "trust"], **quiet
        )
        control = [*as_user, str(binaries[-1] / "pg_ctl"), "-D", f"{place}/data", "-w"]
        options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1"
        subprocess.run([*control, "-o", options, "-l", f"{place}/log", "start"], **quiet)
        try:
            server = int(Path(f"{place}/data/postmaster.pid").read_text().split()[0])
            yield f"postgres://clavier@127.0.0.1:{port}/postgres", home, server
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def inside(database: str) -> None:
    """All measurements on one database, as JSON lines."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from clavier.runs import queue
    from clavier.runs.models import Run

    call_command("migrate", verbosity=0)
    queue.enqueue = lambda *job: False
    owners = make_world()
    submit_backlog(owners, BACKLOG)
    vacuum(connection)
    facts = {
        "bench": "scheduler", "database": database, "backlog": BACKLOG, "tenants": TENANTS, "nodes": NODES,
        "python": platform.python_version(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip

    def tell(measure: str, **figures: Any) -> None:
        print(json.dumps({**facts, "measure": measure, **figures}), flush=True)

    tell("durable", **durable())
    tell("admission", **admissions())
    submit_backlog(owners, BACKLOG - Run.objects.filter(state="PENDING").count())
    vacuum(connection)
    tell("parity", **parity())
    tell("pass_full", **timed(one_pass, PASSES))
    tell("pass_room", **timed(one_pass, PASSES, before=end_some, expect=1))
    tell("claim", **claims(owners))
    tell("naive", **naive())
    shutil.rmtree(os.environ["CLAVIER_HOME"], ignore_errors=True)


def make_world() -> list[Any]:
    """One group of nodes with GPUs, tenants with and without a nominal share, and their users."""
    from clavier.accounts.models import Tenant, User
    from clavier.core.actor import Actor
    from clavier.quotas.models import Gpu, Node, ResourceGroup, TenantShare, Usage

    group = ResourceGroup.objects.create(name="a100")
    nodes = Node.objects.bulk_create(
        Node(name=f"node-{number:03}", resource_group=group, executor="fake") for number in range(NODES)
    )
    caps = {"cpu_milli": CPU_MILLI, "memory_mib": MEMORY_MIB, "gpus": GPUS_EACH}
    Usage.objects.bulk_create(
        Usage(scope="node", scope_id=node.pk, resource=name, cap=cap) for node in nodes for name, cap in caps.items()
    )
    Gpu.objects.bulk_create(
        Gpu(uuid=f"GPU-{node.name}-{index}", node=node, index=index, memory_mib=81920)
        for node in nodes
        for index in range(GPUS_EACH)
    )
    tenants = Tenant.objects.bulk_create(
        Tenant(number=number + 1, name=f"tenant-{number:03}") for number in range(TENANTS)
    )
    users = User.objects.bulk_create(
        User(username=f"user-{tenant.name}-{number}") for tenant in tenants for number in range(USERS_EACH)
    )
    TenantShare.objects.bulk_create(
        TenantShare(resource_group=group, tenant=tenant, cpu_milli=16_000, memory_mib=65_536, gpus=2)
        for tenant in tenants[::2]
    )
    Usage.objects.bulk_create(
        Usage(scope="tenant", scope_id=tenant.pk, resource="running_runs", cap=200) for tenant in tenants
    )
    return [
        Actor(
            users[number].pk, users[number].username, tenants[number // USERS_EACH].pk, "", "member", is_operator=False
        )
        for number in range(len(users))
    ]


def submit_backlog(owners: list[Any], count: int) -> None:
    """Waiting runs of six shapes, most of them for one core or one GPU, in bulk (submission is not what is timed)."""
    from django.utils import timezone

    from clavier.runs.demand import scheduling_columns
    from clavier.runs.models import Run
    from runner.contract.run_spec import Resources, RunSpec

    chance = random.Random(7)
    shapes = [
        (2000, 4096, 0),
        (4000, 16384, 0),
        (8000, 32768, 1),
        (16000, 65536, 2),
        (32000, 131072, 4),
        (2000, 8192, 0),
    ]
    specs = [
        RunSpec(kind="fine_tune", program=None, argv=("/bin/true",), parameters={}, resource_group="a100",
                resources=Resources(cpu_milli=cpu, memory_mib=memory, gpus=gpus))
        for cpu, memory, gpus in shapes
    ]  # fmt: skip
    made = []
    for _ in range(count):
        actor, spec = chance.choice(owners), chance.choices(specs, weights=(40, 20, 20, 10, 5, 5))[0]
        made.append(
            Run(tenant_id=actor.tenant_id, created_by_id=actor.user_id, kind="fine_tune", name="a run",
                subject_id=uuid4(), spec=spec.to_json(), spec_digest=spec.digest(), resource_group="a100",
                priority=chance.choice((0, 0, 0, 5)), created_at=timezone.now(), **scheduling_columns(spec))
        )  # fmt: skip
    Run.objects.bulk_create(made, batch_size=1000)


def vacuum(connection: Any) -> None:
    """What autovacuum would have done by then."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")


def one_pass() -> int:
    """How many it admitted."""
    from runner.worker import scheduler

    return len(scheduler.schedule_pass())


def durable() -> dict[str, Any]:
    """Carrying out a plan that is there already."""
    from clavier.runs import leases
    from clavier.runs.planner import plan
    from clavier.runs.world import read_world
    from runner.worker import scheduler

    world = read_world()
    made = plan(all_waiting(world), world.groups, {})
    made.admissions = made.admissions[:CARRIED]
    fence = leases.hold(scheduler.LEASE, "bench", for_s=60)
    if fence is None:
        raise ValueError("somebody else has the lease")
    begun: list[Any] = []
    began, cpu_before = time.perf_counter(), cpu_s()
    scheduler.carry_out(made, fence, begun)
    wall_s, used_s = time.perf_counter() - began, cpu_s() - cpu_before
    leases.give_up(scheduler.LEASE, "bench")
    if len(begun) != CARRIED:
        raise ValueError(f"{len(begun)} of {CARRIED} began")
    return {
        "admitted": len(begun), "wall_s": round(wall_s, 3), "cpu_s": round(used_s, 3),
        "per_s": round(len(begun) / wall_s), "per_cpu_s": round(len(begun) / used_s),
    }  # fmt: skip


def admissions() -> dict[str, Any]:
    """One pass over the whole backlog and an empty cluster."""
    began, cpu_before = time.perf_counter(), cpu_s()
    admitted = one_pass()
    wall_s, used_s = time.perf_counter() - began, cpu_s() - cpu_before
    return {
        "admitted": admitted, "wall_s": round(wall_s, 3), "cpu_s": round(used_s, 3),
        "per_s": round(admitted / wall_s), "per_cpu_s": round(admitted / used_s),
    }  # fmt: skip


def timed(measure: Callable[[], int], times: int, before: Callable[[], None] | None = None, expect: int = 0) -> Any:
    """Median, least and most milliseconds, and how many were admitted in all. Raises ValueError for fewer than told."""
    wall, cpu, admitted = [], [], 0
    for _ in range(times):
        if before is not None:
            before()
        began, cpu_before = time.perf_counter(), cpu_s()
        number = measure()
        wall.append((time.perf_counter() - began) * 1e3)
        cpu.append((cpu_s() - cpu_before) * 1e3)
        admitted += number
        if number < expect:
            raise ValueError(f"{number} admitted, at least {expect} expected")
    return {"cpu_ms_median_min_max": spread(cpu), "wall_ms_median_min_max": spread(wall), "admitted": admitted}


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [round(f(values), 1) for f in (statistics.median, min, max)]


def cpu_s() -> float:
    """CPU seconds of this process, and of the database server with all of its processes if there is one."""
    server = int(os.environ["BENCH_SERVER"])
    if not server:
        return time.process_time()
    main_process = psutil.Process(server)
    everyone = [main_process, *main_process.children()]
    return time.process_time() + sum(float(sum(one.cpu_times()[:4])) for one in everyone)


def end_some() -> None:
    """Five running runs have ended."""
    from django.db import transaction
    from django.utils import timezone

    from clavier.quotas.services import release
    from clavier.runs.models import Attempt, Run

    for attempt in Attempt.objects.filter(ended_at=None).order_by("?")[:5]:
        with transaction.atomic():
            release(attempt_id=attempt.pk)
            Attempt.objects.filter(pk=attempt.pk).update(ended_at=timezone.now(), end_reason="COMPLETED")
            Run.objects.filter(pk=attempt.run_id).update(state="COMPLETED", ended_at=timezone.now())


def parity() -> dict[str, Any]:
    """The plan over the few runs that are read is the plan over all that wait. Raises ValueError."""
    from clavier.runs.planner import plan
    from clavier.runs.world import read_allowances, read_candidates, read_world

    end_some()
    plans, read = [], []
    for first in (FIRST_FOR_PARITY, 10 * BACKLOG):
        world = read_world()
        selection = read_candidates(world, first=first)
        everyone = selection.candidates if first <= BACKLOG else all_waiting(world)
        read.append(len(everyone))
        plans.append(plan(everyone, world.groups, read_allowances(everyone), until=selection.until))
    few, everything = plans
    number = len(few.admissions)
    if few.admissions != everything.admissions[:number] or not number:
        raise ValueError(f"plans differ: {number} and {len(everything.admissions)} admissions")
    return {"read": read[0], "waiting": read[1], "admissions_equal": number, "of": len(everything.admissions)}


def all_waiting(world: Any) -> list[Any]:
    """Every waiting run as an object, chosen by nothing."""
    from clavier.runs.models import Run
    from clavier.runs.selection import candidate_of

    return [candidate_of(run) for run in Run.objects.filter(state="PENDING")]


def claims(owners: list[Any]) -> dict[str, Any]:
    """Small runs that fit beside the full GPUs, one at a time, each with a pass of its own."""
    from clavier.quotas.models import Node, Usage
    from clavier.runs.models import Run
    from clavier.runs.services import submit_run
    from runner.contract.run_spec import Resources, RunSpec

    one_pass()
    node = Node.objects.order_by("name")[0]
    Usage.objects.filter(scope="node", scope_id=node.pk, resource__in=("cpu_milli", "memory_mib")).update(
        cap=1_900 + CPU_MILLI * 10, used=CPU_MILLI * 10
    )
    spec = RunSpec(kind="fine_tune", program=None, argv=("/bin/true",), parameters={}, resource_group="a100",
                   resources=Resources(cpu_milli=5, memory_mib=5))  # fmt: skip
    found = []
    cpu_before = cpu_s()
    for number in range(CLAIMS):
        began = time.perf_counter()
        run = submit_run(actor=owners[number], kind="fine_tune", name="small", subject_id=uuid4(), spec=spec)
        one_pass()
        found.append((time.perf_counter() - began) * 1e3)
        if Run.objects.get(pk=run.pk).state != "PREPARING":
            raise ValueError("a run that fits was not admitted")
    cpu_ms = (cpu_s() - cpu_before) / CLAIMS * 1e3
    found.sort()
    waiting = Run.objects.filter(state="PENDING").count()
    p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
    return {
        "waiting": waiting,
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "cpu_ms_mean": round(cpu_ms, 1),
        "runs": CLAIMS,
    }


def naive() -> dict[str, Any]:
    """Each waiting run tries each node of its group by a reservation of its own, in the order of priority and age."""
    from clavier.quotas.models import Node
    from clavier.runs.admission import begin_attempt
    from clavier.runs.models import Attempt, Run

    nodes = list(Node.objects.filter(is_schedulable=True).order_by("name"))
    waiting = list(Run.objects.filter(state="PENDING").order_by("-priority", "created_at", "pk")[:NAIVE_RUNS])
    began, cpu_before = time.perf_counter(), cpu_s()
    for run in waiting:
        for node in nodes:
            if isinstance(begin_attempt(run=run, nodes=[node]), Attempt):
                break
    each, cpu_each = (time.perf_counter() - began) / len(waiting), (cpu_s() - cpu_before) / len(waiting)
    return {
        "runs": len(waiting), "wall_s_per_run": round(each, 4), "cpu_s_per_run": round(cpu_each, 4),
        "cpu_s_for_backlog_computed": round(cpu_each * BACKLOG),
    }  # fmt: skip


if __name__ == "__main__":
    if "BENCH_INSIDE" in os.environ:
        inside(os.environ["BENCH_INSIDE"])
    else:
        main()
