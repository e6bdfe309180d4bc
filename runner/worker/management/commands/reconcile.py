"""``manage.py reconcile``: the loop that keeps rows and processes in step."""

from __future__ import annotations

import gc
import logging
import signal
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import InterfaceError, OperationalError, close_old_connections

from clavier.core.errors import DomainError
from clavier.quotas.inventory import scan_gpus
from clavier.quotas.models import Node
from clavier.quotas.services import ensure_local_node
from clavier.runs import leases
from clavier.runs.leases import Fence
from clavier.runs.models import Lease
from clavier.runs.queries import RECONCILER_LEASE
from runner.worker.background import Background
from runner.worker.bells import Bells
from runner.worker.engines import cool_down, engines_of, executor
from runner.worker.hands import Hands, ThreadLane
from runner.worker.housekeeping import Housekeeping, RunWatches
from runner.worker.invariants import Watch
from runner.worker.presence import Presence, is_dead, remove_dead
from runner.worker.reconciler import LEASE_S, Reconciler

logger = logging.getLogger(__name__)

#: Passes take no more than half of a core, and no bell makes them follow each other faster than this.
SHORTEST_PAUSE_S = 0.1


class Command(BaseCommand):
    """Runs until TERM; a second reconciler stands by until the first one dies or its lease ends."""

    requires_system_checks = ["clavier"]  # the others import every page, and adoption waits
    help = "Compare what should run with what runs, forever."

    def handle(self, *args: Any, **options: Any) -> None:
        """The loop. Errors are logged and tried again, also a database that is not there yet."""
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        presence, bells = Presence(presence_folder()), Bells()
        self.do = Background()
        self.reconciler, self.watch, self.housekeeping = Reconciler(Hands(ThreadLane)), Watch(), Housekeeping()
        self.run_watches = RunWatches()
        self.node: Node | None = None
        while not self.stopping:
            began, used = time.monotonic(), time.process_time()
            try:
                fence = take_lead(presence.holder)
                if fence is not None:
                    self.look_after(fence, bells)
            except leases.LeaseLost as lost:
                logger.warning("another reconciler took over: %s", lost)
            except (InterfaceError, OperationalError) as error:
                logger.warning("the database does not answer: %s; trying again", str(error).strip())
                close_old_connections()
            except Exception:  # whatever one run's files provoke must not end the loop for all the others
                logger.exception("a pass failed; trying again")
                close_old_connections()
            at_least_s = max(SHORTEST_PAUSE_S, time.process_time() - used)
            bells.wait(at_least_s, settings.RECONCILE_INTERVAL_S - (time.monotonic() - began))
        leases.give_up(RECONCILER_LEASE, presence.holder)
        presence.close()
        cool_down()

    def look_after(self, fence: Fence, bells: Bells) -> None:
        """One turn of the leader: the runs first. Raises LeaseLost."""
        node = self.node or ensure_local_node()
        self.reconciler.run_pass(fence)
        if self.node is None:
            self.scan(node)
            self.node = node
            gc.collect()
            gc.freeze()  # what lives as long as the loop: to look through it took 0.05 s each time
        bells.attend({engine: executor(engine) for engine in engines_of(Node.objects.all())})
        if self.housekeeping.is_due:
            self.do("tidy", self.housekeeping.tidy)
        if self.watch.is_due:
            self.do("look", self.watch.look)
        if self.run_watches.is_due:
            self.do("watch", self.run_watches.look)

    def scan(self, node: Node) -> None:
        """Read this machine's GPUs. What nvidia-smi can not tell is no reason to stand still."""
        try:
            for sentence in scan_gpus(node=node):
                logger.info(sentence)
        except DomainError as refusal:
            logger.warning("GPUs were not read: %s", refusal.message)

    def stop(self, *args: Any) -> None:
        """Finish the pass, then leave."""
        self.stopping = True


def presence_folder() -> Path:
    """Where the reconcilers of this home show that they live."""
    return Path(settings.CLAVIER_HOME) / "reconcilers"


def take_lead(holder: str) -> Fence | None:
    """Hold the lease, at once where its holder is known to be dead; None while another one leads."""
    return leases.hold(RECONCILER_LEASE, holder, for_s=LEASE_S) or (
        leases.hold(RECONCILER_LEASE, holder, for_s=LEASE_S) if bury_predecessor() else None
    )


def bury_predecessor() -> bool:
    """A holder of this machine that is dead keeps nobody waiting until its lease ends; whether there was one."""
    lease = Lease.objects.filter(name=RECONCILER_LEASE).first()
    if lease is None or not is_dead(presence_folder(), lease.holder):
        return False
    logger.info("%s is dead; taking over", lease.holder)
    leases.give_up(RECONCILER_LEASE, lease.holder)
    remove_dead(presence_folder())
    return True
