"""A process of the runner that dies, or stands still, at a point: ``python -m tests.chaos.at_a_point VERBS POINT``.

``VERBS`` with commas: ``submit``, ``schedule``, ``launch`` (every attempt that is not launched), ``watch`` (passes for
some seconds), ``reconcile`` (passes until nothing is live), ``tell`` (one JSON line).
``POINT``: one of POINTS, or ``none``. In the environment: HOW is KILL (default) or STOP, JOB the job's name.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import django

django.setup()

from clavier.quotas.models import Node  # noqa: E402
from clavier.quotas.services import ensure_local_node  # noqa: E402
from clavier.runs import admission, leases, services  # noqa: E402
from clavier.runs.models import Attempt, RunEvent  # noqa: E402
from clavier.runs.queries import RECONCILER_LEASE, live_runs  # noqa: E402
from runner.executors.local_process import LocalProcessExecutor  # noqa: E402
from runner.worker import jobs, reconciler, scheduler  # noqa: E402
from runner.worker.engines import engines_of, executor  # noqa: E402
from runner.worker.invariants import check_everything  # noqa: E402
from runner.worker.management.commands.reconcile import bury_predecessor, presence_folder  # noqa: E402
from runner.worker.presence import Presence  # noqa: E402
from tests.chaos import inside  # noqa: E402

#: Name -> whose attribute, and whether it is reached before or after that has worked.
POINTS: dict[str, tuple[Any, str, str]] = {
    "in the transaction of the reservation": (admission, "reserve_all", "after"),
    "between reservation and launch": (scheduler.queue, "enqueue_launch", "before"),
    "before the intent is written": (jobs, "prepare_folder", "after"),
    "between intent and wrapper": (LocalProcessExecutor, "_spawn_wrapper", "before"),
    "after the start": (LocalProcessExecutor, "start", "after"),
    "before RUNNING is written": (reconciler, "mark_running", "before"),
    "after RUNNING was written": (reconciler, "mark_running", "after"),
    "while collecting": (reconciler, "seal_output", "before"),
    "in the transaction of the end": (services, "announce", "before"),
    "after the end was written": (reconciler, "finish_attempt", "after"),
    "before the executor forgets": (LocalProcessExecutor, "remove", "before"),
}
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP}


def lay_mine(point: str) -> None:
    """Once, at the point."""
    owner, name, when = POINTS[point]
    whole: Callable[..., Any] = getattr(owner, name)
    gone_off: list[bool] = []

    def mined(*arguments: Any, **more: Any) -> Any:
        if when == "before":
            go_off(gone_off, point)
        result = whole(*arguments, **more)
        if when == "after":
            go_off(gone_off, point)
        return result

    setattr(owner, name, mined)


def go_off(gone_off: list[bool], point: str) -> None:
    """The signal, to ourselves."""
    if not gone_off:
        gone_off.append(True)
        sys.stdout.write(f"reached: {point}\n")
        sys.stdout.flush()
        os.kill(os.getpid(), SIGNALS[os.environ.get("HOW", "KILL")])
        sys.stdout.write("woke up\n")
        sys.stdout.flush()


def launch_all() -> None:
    """What the queue's worker does."""
    for pk in Attempt.objects.filter(ended_at=None, observed_at=None).values_list("pk", flat=True):
        jobs.launch(str(pk))


def submit() -> None:
    """One job of the campaign's kind; it keeps its journal outside of the platform."""
    name, journals = os.environ["JOB"], Path(os.environ["JOURNALS"])
    ensure_local_node()
    (journals / name).mkdir()
    words = ("job.py", str(journals / name), os.environ["STEPS"], "0.1")
    inside.submit_once(
        inside.make_people().owner, name, subject_of(name), words, journals / name, os.environ.get("IMAGE")
    )


def subject_of(name: str) -> UUID:
    """What the run of a job is for."""
    return uuid5(NAMESPACE_OID, name)


def tell() -> None:
    """What the platform says of the job, its events, and what the invariants say."""
    name = os.environ["JOB"]
    told = inside.tell({name: subject_of(name)})[name]
    assert told is not None
    events = RunEvent.objects.filter(run__subject_id=subject_of(name)).order_by("pk").values_list("to_state", flat=True)
    findings = [str(finding) for finding in check_everything().findings]
    sys.stdout.write(json.dumps({"told": asdict(told), "events": list(events), "findings": findings}) + "\n")


def passes(until: Callable[[], bool], within_s: float) -> bool:
    """Passes as the leader, like ``manage.py reconcile``; whether it came true."""
    bury_predecessor()
    loop, holder = reconciler.Reconciler(), Presence(presence_folder()).holder
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        fence = leases.hold(RECONCILER_LEASE, holder, for_s=float(os.environ.get("LEASE_S", "2")))
        try:
            if fence is not None:
                loop.run_pass(fence)
        except leases.LeaseLost:
            sys.stdout.write("lost the lease\n")
            sys.stdout.flush()
        if until():
            leases.give_up(RECONCILER_LEASE, holder)
            return True
        time.sleep(0.1)
    leases.give_up(RECONCILER_LEASE, holder)
    return False


def reconcile() -> None:
    """Until no run is live and the executor has forgotten all. A killed scheduler's lease may hold it up for 10 s."""
    known = [executor(engine) for engine in engines_of(Node.objects.all())]
    if not passes(lambda: not (live_runs().exists() or any(one.list() for one in known)), 60):
        raise SystemExit("something is still live")


def watch() -> None:
    """For some seconds, whatever happens."""
    passes(lambda: False, float(os.environ["WATCH_S"]))


VERBS: dict[str, Callable[[], object]] = {
    "schedule": scheduler.schedule_pass,
    "submit": submit,
    "launch": launch_all,
    "watch": watch,
    "tell": tell,
    "reconcile": reconcile,
}

if __name__ == "__main__":
    for verb in sys.argv[1].split(","):
        VERBS[verb]()
        if verb == "submit" and sys.argv[2] != "none":
            lay_mine(sys.argv[2])
