"""``manage.py reconcile``: the loop that keeps rows and processes in step."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections

from clavier.core.errors import DomainError
from clavier.quotas.inventory import scan_gpus
from clavier.quotas.models import Node
from clavier.quotas.services import ensure_local_node
from clavier.runs import leases
from clavier.runs.models import Lease
from clavier.runs.queries import RECONCILER_LEASE
from runner.worker.housekeeping import Housekeeping
from runner.worker.invariants import Watch
from runner.worker.reconciler import Reconciler

logger = logging.getLogger(__name__)

LEASE_S = 15.0


class Command(BaseCommand):
    """Runs until TERM; a second reconciler stands by until the first one's lease ends."""

    help = "Compare what should run with what runs, forever."

    def handle(self, *args: Any, **options: Any) -> None:
        """The loop. Errors are logged and tried again."""
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        holder = f"{this_machine()}:{os.getpid()}"
        reconciler, watch, housekeeping = Reconciler(), Watch(), Housekeeping()
        self.scan(ensure_local_node())
        bury_predecessor()
        while not self.stopping:
            began = time.monotonic()
            try:
                fence = leases.hold(RECONCILER_LEASE, holder, for_s=LEASE_S)
                if fence is not None:
                    reconciler.run_pass(fence)
                    housekeeping.tidy()
                    watch.look()
            except leases.LeaseLost as lost:
                logger.warning("another reconciler took over: %s", lost)
            except Exception:  # whatever one run's files provoke must not end the loop for all the others
                logger.exception("a pass failed; trying again")
                close_old_connections()
            time.sleep(max(0.05, settings.RECONCILE_INTERVAL_S - (time.monotonic() - began)))
        leases.give_up(RECONCILER_LEASE, holder)

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


def this_machine() -> str:
    """Names where process ids mean the same: host, boot and process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    return f"{socket.gethostname()[:50]}:{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def bury_predecessor() -> None:
    """A holder of this machine that is dead keeps nobody waiting until its lease ends."""
    lease = Lease.objects.filter(name=RECONCILER_LEASE).first()
    place, _, pid = lease.holder.rpartition(":") if lease else ("", "", "")
    if lease is not None and place == this_machine() and not Path(f"/proc/{pid}").exists():
        logger.info("%s is dead; taking over", lease.holder)
        leases.give_up(RECONCILER_LEASE, lease.holder)
