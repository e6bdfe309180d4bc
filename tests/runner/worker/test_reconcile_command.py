"""Who may take over from whom, and when."""

from __future__ import annotations

import gc
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.utils import timezone

from clavier.runs import leases
from clavier.runs.models import Lease
from clavier.runs.queries import RECONCILER_LEASE
from runner.worker.management.commands.reconcile import Command, bury_predecessor, presence_folder, take_lead
from runner.worker.presence import Presence
from runner.worker.reconciler import LEASE_S

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("home")]


def test_a_dead_leader_of_this_machine_keeps_nobody_waiting():
    code = (
        "import pathlib, sys; from runner.worker.presence import Presence;"
        " print(Presence(pathlib.Path(sys.argv[1])).holder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(presence_folder())]
    leader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    holder = leader.stdout.readline().strip()
    assert leases.hold(RECONCILER_LEASE, holder, for_s=LEASE_S)
    assert not take_lead("next"), "it lives"
    leader.kill()
    leader.communicate()
    taken = take_lead("next")
    assert taken is not None
    assert taken.epoch == 2
    assert list(presence_folder().iterdir()) == []


def test_a_lease_that_was_written_before_the_clock_was_set_back_holds_nobody_up():
    assert leases.hold("loop", "first", for_s=LEASE_S)
    Lease.objects.update(expires_at=timezone.now() + timedelta(seconds=1.6 * LEASE_S))
    assert not leases.hold("loop", "next", for_s=LEASE_S)
    Lease.objects.update(expires_at=timezone.now() + timedelta(hours=1))
    assert leases.hold("loop", "next", for_s=LEASE_S)


def test_who_leaves_gives_the_lead_away_and_nothing_stays():
    present = Presence(presence_folder())
    assert leases.hold(RECONCILER_LEASE, present.holder, for_s=LEASE_S)
    assert not bury_predecessor()
    present.close()
    assert list(presence_folder().iterdir()) == []
    assert not bury_predecessor(), "of one that left, or that is on another machine, nothing is known"


def test_a_reconciler_that_can_not_show_itself_leads_all_the_same(tmp_path):
    (tmp_path / "file").touch()
    present = Presence(tmp_path / "file" / "reconcilers")
    assert leases.hold(RECONCILER_LEASE, present.holder, for_s=LEASE_S)
    present.close()


def test_a_term_is_renewed_until_somebody_else_begins_the_next():
    fence = leases.hold("loop", "first", for_s=LEASE_S)
    assert fence is not None
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    fence.renew(for_s=LEASE_S)
    assert not leases.hold("loop", "next", for_s=LEASE_S)
    leases.give_up("loop", "first")
    assert leases.hold("loop", "next", for_s=LEASE_S)
    with pytest.raises(leases.LeaseLost):
        fence.renew(for_s=LEASE_S)


def test_memory_is_frozen_once_after_the_first_turn(monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: done.append("freeze"))
    monkeypatch.setattr(Command, "scan", lambda self, node: done.append("scan"))
    command = Command()
    command.node = None
    command.reconciler = SimpleNamespace(run_pass=lambda fence: done.append("pass"))
    command.housekeeping = command.watch = command.run_watches = SimpleNamespace(is_due=False)
    for _ in range(2):
        command.look_after(None, SimpleNamespace(attend=lambda engines: None))
    assert done == ["pass", "scan", "freeze", "pass"]
