"""``manage.py reconcile``: the loop that keeps rows and processes in step."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import DatabaseError, close_old_connections

from clavier.core.errors import DomainError
from clavier.quotas.inventory import scan_gpus
from clavier.quotas.models import Node
from clavier.quotas.services import ensure_local_node
from clavier.runs import leases
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
        """The loop. Errors of the database are logged and tried again."""
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        holder = f"{socket.gethostname()}:{os.getpid()}"
        reconciler, watch, housekeeping = Reconciler(), Watch(), Housekeeping()
        self.scan(ensure_local_node())
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
            except (DatabaseError, OSError):
                logger.exception("the database or the disk failed; trying again")
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
