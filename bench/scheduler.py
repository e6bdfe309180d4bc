"""P7: the scheduler with 10,000 waiting runs of 200 tenants, on SQLite and on PostgreSQL with fsync.

``python -m bench.scheduler [sqlite|postgresql]``. Each database is new and lies in a temporary folder. In each round:

* ``pass_full``: one pass while nothing fits; ``pass_room``: one pass right after five runs have ended; ``pass_old``:
  the same where all have waited for more than ten minutes, so that the head of the line holds nodes.
* ``durable``: admissions a second when a plan is carried out (reservations, devices, attempt, event, state), with
  PostgreSQL's and SQLite's commit guarantees as the platform sets them; ``admission``: the same with reading and
  planning, in one pass over what is left of the cluster.
* ``claim``: from before ``submit_run`` to the committed PREPARING of a run that fits, by a pass in the same process,
  with the backlog standing. The queue's own latency is not in it.
* ``naive``: the row-by-row scheduler that this one replaced, over the first waiting runs only, given as seconds a run.

CPU time is this process's and the database server's, in the kernel's nanoseconds; the wall time beside it, and the load
at the time, say how busy the machine was. ``met``: whether the bar is met in CPU; ``met_wall``: also by the clock.
Each pass of ``admission``, ``pass_room`` and ``pass_old`` must admit the same runs to the same nodes as a plan worked
out beforehand from all that wait: the first two as a brute force that knows nothing of the planner, which compares all
that could start after each admission; the third as the planner over all of them. Else nothing is measured.
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

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "scheduler.json"
TENANTS, USERS_EACH, BACKLOG = 200, 2, 10_000
NODES, GPUS_EACH, CPU_MILLI, MEMORY_MIB = 100, 8, 64_000, 512 * 1024
CARRIED = 500
FULL_PASSES, ROOM_PASSES, CLAIMS, NAIVE_RUNS = 60, 8, 100, 3
#: Of P7.
PASS_MS, ADMISSIONS_PER_S, CLAIM_MS = 50, 1500, 30


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
        "python": platform.python_version(), "cpus": os.cpu_count(),
    }  # fmt: skip

    def tell(measure: str, **figures: Any) -> None:
        print(json.dumps({**facts, "load": round(os.getloadavg()[0], 1), "measure": measure, **figures}), flush=True)

    tell("durable", **durable())
    submit_backlog(owners, BACKLOG - Run.objects.filter(state="PENDING").count())
    tell("admission", **admissions())
    submit_backlog(owners, BACKLOG - Run.objects.filter(state="PENDING").count())
    vacuum(connection)
    tell("pass_full", **timed(one_pass, FULL_PASSES))
    tell("pass_room", **timed(one_pass, ROOM_PASSES, before=end_some, oracle=brute_force))
    tell("claim", **claims(owners))
    grow_old()
    vacuum(connection)
    tell("pass_old", **timed(one_pass, ROOM_PASSES, before=end_some, oracle=plan_over_all))
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
    made = plan(all_waiting(), world.groups, {})
    made.admissions = made.admissions[:CARRIED]
    fence = leases.hold(scheduler.LEASE, "bench", for_s=60)
    if fence is None:
        raise ValueError("somebody else has the lease")
    begun: list[Any] = []
    with Stopwatch() as watch:
        scheduler.carry_out(made, fence, begun.append, scheduler.Refused())
    leases.give_up(scheduler.LEASE, "bench")
    if len(begun) != CARRIED:
        raise ValueError(f"{len(begun)} of {CARRIED} began")
    return watch.rates(len(begun))


def admissions() -> dict[str, Any]:
    """One pass over the whole backlog and a half-empty cluster."""
    expected = brute_force()
    with Stopwatch() as watch:
        admitted = one_pass()
    check(expected)
    return {**watch.rates(admitted), "equal_to_brute_force": admitted}


class Stopwatch:
    """Wall and CPU seconds of what is done within."""

    def __enter__(self) -> Stopwatch:
        self.wall_s, self.cpu_s = time.perf_counter(), cpu_s()
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self.wall_s, cpu_s() - self.cpu_s

    def rates(self, number: int) -> dict[str, Any]:
        """So many admissions a second."""
        return {
            "admitted": number, "wall_s": round(self.wall_s, 3), "cpu_s": round(self.cpu_s, 3),
            "per_s": round(number / self.wall_s), "per_cpu_s": round(number / self.cpu_s),
            "bar_per_s": ADMISSIONS_PER_S, "met": number / self.cpu_s >= ADMISSIONS_PER_S,
            "met_wall": number / self.wall_s >= ADMISSIONS_PER_S,
        }  # fmt: skip


def timed(
    measure: Callable[[], int],
    times: int,
    before: Callable[[], None] | None = None,
    oracle: Callable[[], dict[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Milliseconds of each, and how many were admitted in all. Raises ValueError where that is not what it should."""
    wall, cpu, admitted = [], [], 0
    for _ in range(times):
        if before is not None:
            before()
        expected = oracle() if oracle is not None else None
        with Stopwatch() as watch:
            admitted += measure()
        wall.append(watch.wall_s * 1e3)
        cpu.append(watch.cpu_s * 1e3)
        if expected is not None:
            check(expected)
    equal = {"equal_to_" + oracle.__name__: admitted} if oracle is not None else {}
    return {
        **spread("cpu_ms", cpu), **spread("wall_ms", wall), "times": times, "admitted": admitted, **equal,
        "bar_ms": PASS_MS, "met": statistics.median(cpu) <= PASS_MS, "met_wall": statistics.median(wall) <= PASS_MS,
    }  # fmt: skip


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, 99th percentile (the most where there are few), least and most."""
    found = sorted(values)
    p99 = found[min(len(found) - 1, int(len(found) * 0.99))]
    figures = {"median": statistics.median(found), "p99": p99, "min": found[0], "max": found[-1]}
    return {f"{name}_{word}": round(figure, 1) for word, figure in figures.items()}


#: Of each process of the database server, what it had used when it was last seen.
used_by_server: dict[str, float] = {}


def cpu_s() -> float:
    """CPU seconds of this process, and of the database server with all of its processes if there is one."""
    server = os.environ["BENCH_SERVER"]
    if server != "0":
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        for pid in (server, *children):
            try:
                used_by_server[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended since it was listed
    return time.process_time() + sum(used_by_server.values())


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


def grow_old() -> None:
    """Everybody has waited long enough to hold nodes."""
    from datetime import timedelta

    from clavier.runs.models import Run

    for run in Run.objects.filter(state="PENDING").order_by("queued_at")[:1]:
        Run.objects.filter(state="PENDING").update(queued_at=run.queued_at - timedelta(minutes=30))


def check(expected: dict[Any, Any]) -> None:
    """The newest attempts are of these runs, on these nodes. Raises ValueError."""
    from clavier.runs.models import Attempt

    begun = dict(Attempt.objects.order_by("-created_at").values_list("run_id", "node_id")[: len(expected)])
    more = Attempt.objects.filter(ended_at=None).count() - live_before[0]
    if begun != expected or more != len(expected):
        raise ValueError(f"{more} were admitted, {len(expected)} should have been, on the same nodes")


#: How many attempts lived when what a pass should do was last worked out.
live_before = [0]


def brute_force() -> dict[Any, Any]:
    """Run -> node: again and again the first in the order of admission of all that could start, on the fullest node."""
    from clavier.runs.models import Attempt
    from clavier.runs.world import read_allowances, read_world

    live_before[0] = Attempt.objects.filter(ended_at=None).count()
    (group,) = read_world().groups
    waiting = all_waiting()
    left = {owner: list(amounts) for owner, amounts in read_allowances(waiting).items()}
    free = {node.id: list(node.free) for node in group.nodes}
    names = {node.id: node.name for node in group.nodes}
    used = {tenant: list(amounts) for tenant, amounts in group.used.items()}
    found: dict[Any, Any] = {}

    def order(run: Any) -> tuple[Any, ...]:
        held, share = used.get(run.tenant, [0, 0, 0]), group.shares.get(run.tenant)
        is_nominal = share is not None and all(
            have + want <= most for have, want, most in zip(held, run.total, share.nominal, strict=True)
        )
        part = 0.0 if is_nominal else max(have / whole for have, whole in zip(held, group.capacity, strict=True))
        return (not run.is_urgent, not is_nominal, part, -run.priority, run.since, run.id)

    # Of runs alike in all but priority and age, only the first can be next.
    queues: dict[tuple[Any, ...], list[Any]] = {}
    for run in sorted(waiting, key=lambda run: (-run.priority, run.since, run.id), reverse=True):
        queues.setdefault((run.tenant, run.user, run.total, run.is_urgent), []).append(run)
    while True:
        places = {}
        for wants in {key[2] for key in queues}:
            gaps = [
                (room[2] - wants[2], room[0] - wants[0], room[1] - wants[1], names[node], node)
                for node, room in free.items()
                if all(want <= have for want, have in zip(wants, room, strict=True))
            ]
            if gaps:
                places[wants] = min(gaps)[-1]
        queues = {
            key: queue
            for key, queue in queues.items()
            if queue
            and key[2] in places
            and all(
                want <= have
                for owner in key[:2]
                for want, have in zip((1, *key[2]), left.get(owner, (1, *key[2])), strict=True)
            )
        }
        if not queues:
            return found
        chosen = min((queue[-1] for queue in queues.values()), key=order)
        queues[chosen.tenant, chosen.user, chosen.total, chosen.is_urgent].pop()
        found[chosen.id] = places[chosen.total]
        for at, amount in enumerate(chosen.total):
            free[found[chosen.id]][at] -= amount
            used.setdefault(chosen.tenant, [0, 0, 0])[at] += amount
        for owner in (chosen.tenant, chosen.user):
            for at, amount in enumerate((1, *chosen.total) if owner in left else ()):
                left[owner][at] -= amount


def plan_over_all() -> dict[Any, Any]:
    """Run -> node by the planner, were every waiting run read."""
    from clavier.runs.models import Attempt
    from clavier.runs.planner import plan
    from clavier.runs.world import read_allowances, read_world

    live_before[0] = Attempt.objects.filter(ended_at=None).count()
    world, everyone = read_world(), all_waiting()
    made = plan(everyone, world.groups, read_allowances(everyone))
    return {admission.run: admission.nodes[0] for admission in made.admissions}


def all_waiting() -> list[Any]:
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
    wall, cpu, submitting = [], [], []
    for number in range(CLAIMS):
        with Stopwatch() as watch:
            with Stopwatch() as first_part:
                run = submit_run(actor=owners[number], kind="fine_tune", name="small", subject_id=uuid4(), spec=spec)
            one_pass()
        wall.append(watch.wall_s * 1e3)
        cpu.append(watch.cpu_s * 1e3)
        submitting.append(first_part.cpu_s * 1e3)
        if Run.objects.get(pk=run.pk).state != "PREPARING":
            raise ValueError("a run that fits was not admitted")
    figures = {**spread("cpu_ms", cpu), **spread("wall_ms", wall)}
    return {
        "waiting": Run.objects.filter(state="PENDING").count(), "runs": CLAIMS, **figures,
        "submit_cpu_ms_median": round(statistics.median(submitting), 1),
        "bar_p99_ms": CLAIM_MS, "met": figures["cpu_ms_p99"] <= CLAIM_MS,
        "met_wall": figures["wall_ms_p99"] <= CLAIM_MS,
    }  # fmt: skip


def naive() -> dict[str, Any]:
    """Each waiting run tries each node of its group by a reservation of its own, in the order of priority and age."""
    from clavier.quotas.models import Node
    from clavier.runs.admission import begin_attempt
    from clavier.runs.models import Attempt, Run

    nodes = list(Node.objects.filter(is_schedulable=True).order_by("name"))
    waiting = list(Run.objects.filter(state="PENDING").order_by("-priority", "created_at", "pk")[:NAIVE_RUNS])
    with Stopwatch() as watch:
        for run in waiting:
            for node in nodes:
                if isinstance(begin_attempt(run=run, nodes=[node]), Attempt):
                    break
    each, cpu_each = watch.wall_s / len(waiting), watch.cpu_s / len(waiting)
    return {
        "runs": len(waiting), "wall_s_per_run": round(each, 4), "cpu_s_per_run": round(cpu_each, 4),
        "cpu_s_for_backlog_computed": round(cpu_each * BACKLOG),
    }  # fmt: skip


if __name__ == "__main__":
    if "BENCH_INSIDE" in os.environ:
        inside(os.environ["BENCH_INSIDE"])
    else:
        main()
