"""Never more than a cap, on SQLite and PostgreSQL, however many ask at once."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest
from django.db import connection

from clavier.quotas.models import Usage
from clavier.quotas.services import Booking, Placement, audit_usage, ensure_local_node, release, reserve, set_cap
from runner.contract.run_spec import Resources

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_storm_of_threads_is_granted_exactly_the_cap(home, alice):
    node = ensure_local_node()
    for resource in ("cpu_milli", "memory_mib"):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=10**9)
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs", cap=10)
    granted: list[object] = []
    barrier = threading.Barrier(8)

    def ask_five_times() -> None:
        barrier.wait()
        for _ in range(5):
            attempt_id = uuid4()
            reserved = reserve(
                attempt_id=attempt_id,
                tenant_id=alice.tenant_id,
                user_id=alice.user_id,
                placements=[Placement(0, node, Resources())],
            )
            if isinstance(reserved, Booking):
                granted.append(attempt_id)
        connection.close()

    threads = [threading.Thread(target=ask_five_times) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 10
    assert Usage.objects.get(scope="tenant", resource="running_runs").used == 10
    assert audit_usage() == []
    for attempt_id in granted:
        assert release(attempt_id=attempt_id) > 0
        assert release(attempt_id=attempt_id) == 0, "a second release gives nothing back"
    assert set(Usage.objects.values_list("used", flat=True)) == {0}


def test_a_reservation_that_fails_halfway_books_nothing(home, alice):
    node = ensure_local_node()
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="cpu_milli", cap=5000)
    set_cap(scope="user", scope_id=alice.user_id, resource="memory_mib", cap=2048)
    shortage = reserve(
        attempt_id=uuid4(),
        tenant_id=alice.tenant_id,
        user_id=alice.user_id,
        placements=[Placement(0, node, Resources(cpu_milli=1000, memory_mib=4096))],
    )
    assert str(shortage) == "2 of 2 GiB of memory left for you, 4 requested"
    assert set(Usage.objects.values_list("used", flat=True)) == {0}


def test_a_node_that_is_in_use_keeps_its_executor(home, alice, settings):
    node = ensure_local_node()
    attempt_id = uuid4()
    placements = [Placement(0, node, Resources())]
    reserve(attempt_id=attempt_id, tenant_id=alice.tenant_id, user_id=alice.user_id, placements=placements)
    settings.CLAVIER_EXECUTOR = "docker_engine"
    assert ensure_local_node().executor == node.executor, "another executor would not know the run"
    release(attempt_id=attempt_id)
    assert ensure_local_node().executor == "docker_engine"
