"""Who may take over from whom, and when."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from django.utils import timezone

from clavier.runs import leases
from clavier.runs.models import Lease
from clavier.runs.queries import RECONCILER_LEASE
from runner.worker.management.commands.reconcile import bury_predecessor, this_machine

pytestmark = pytest.mark.django_db


def test_a_dead_leader_of_this_machine_keeps_nobody_waiting():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert leases.hold(RECONCILER_LEASE, f"{this_machine()}:{dead.pid}", for_s=15)
    assert not leases.hold(RECONCILER_LEASE, "next", for_s=15)
    bury_predecessor()
    assert leases.hold(RECONCILER_LEASE, "next", for_s=15)


def test_a_lease_that_was_written_before_the_clock_was_set_back_holds_nobody_up():
    assert leases.hold("loop", "first", for_s=15)
    Lease.objects.update(expires_at=timezone.now() + timedelta(seconds=25))
    assert not leases.hold("loop", "next", for_s=15)
    Lease.objects.update(expires_at=timezone.now() + timedelta(hours=1))
    assert leases.hold("loop", "next", for_s=15)


@pytest.mark.parametrize("place", ["alive", "elsewhere:0:1"])
def test_a_leader_that_lives_or_is_elsewhere_keeps_its_lease(place):
    leader = f"{this_machine()}:{os.getpid()}" if place == "alive" else f"{place}:999999"
    assert leases.hold(RECONCILER_LEASE, leader, for_s=15)
    bury_predecessor()
    assert not leases.hold(RECONCILER_LEASE, "next", for_s=15)
