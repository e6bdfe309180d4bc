"""A GPU or MIG device has one whole holder; shares never go over 100 percent or over the memory."""

from __future__ import annotations

import threading
from collections import Counter
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction

from clavier.quotas.models import Gpu, GpuBooking, Node, Usage
from clavier.quotas.services import (
    Booking,
    Placement,
    Shortage,
    audit_usage,
    count_devices,
    ensure_local_node,
    gpus_of,
    move_reservations,
    release,
    reserve,
    set_cap,
)
from runner.contract.run_spec import Resources

pytestmark = pytest.mark.django_db

SMALL = {"cpu_milli": 100, "memory_mib": 64}
WHOLE = Resources(**SMALL, gpus=1)
SHARE = Resources(**SMALL, gpu_cores_percent=30, gpu_memory_mib=10_000)
SLICE = Resources(**SMALL, mig_profile="1g.10gb", mig_devices=1)


def make_gpu(node: Node, index: int, **columns: object) -> Gpu:
    gpu = Gpu.objects.create(
        **{"uuid": f"GPU-{node.name}-{index}", "node": node, "index": index, "memory_mib": 40_000, **columns}
    )
    count_devices(node)
    return gpu


@pytest.fixture
def node(home) -> Node:
    found = ensure_local_node()
    for resource in ("cpu_milli", "memory_mib"):
        set_cap(scope="node", scope_id=found.pk, resource=resource, cap=10**9)
    return found


def ask(actor, *placements: Placement, attempt_id=None) -> Booking | Shortage:
    with transaction.atomic():
        return reserve(
            attempt_id=attempt_id or uuid4(), tenant_id=actor.tenant_id, user_id=actor.user_id, placements=placements
        )


def test_whole_gpus_are_booked_by_uuid_and_come_back(node, alice):
    for index in range(3):
        make_gpu(node, index)
    attempt_id = uuid4()
    booked = ask(alice, Placement(0, node, Resources(**SMALL, gpus=2)), attempt_id=attempt_id)
    assert booked == Booking({0: ("GPU-local-0", "GPU-local-1")})
    assert gpus_of(attempt_id) == booked.gpus
    refused = ask(alice, Placement(0, node, Resources(**SMALL, gpus=2)))
    assert str(refused) == "1 of 3 GPUs left for node local, 2 requested"
    assert refused.remedy == "It starts when 1 more GPUs are free: when runs that hold them end."
    assert audit_usage() == []
    release(attempt_id=attempt_id)
    assert gpus_of(attempt_id) == {}
    assert set(Gpu.objects.values_list("cores_used", "memory_used_mib")) == {(0, 0)}
    assert set(Usage.objects.values_list("used", flat=True)) == {0}


def test_a_gang_gets_its_gpus_on_all_nodes_or_none(node, alice):
    other = Node.objects.create(name="second", resource_group=node.resource_group, executor="fake")
    make_gpu(node, 0)
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs", cap=1)
    two = [Placement(0, node, WHOLE), Placement(1, other, WHOLE)]
    refused = ask(alice, *two)
    assert isinstance(refused, Shortage)
    assert refused.node == "second"
    assert set(Usage.objects.values_list("used", flat=True)) == {0}
    assert not GpuBooking.objects.exists()
    make_gpu(other, 0)
    assert ask(alice, *two) == Booking({0: ("GPU-local-0",), 1: ("GPU-second-0",)})
    assert Usage.objects.get(scope="tenant", resource="running_runs").used == 1, "one run, however many containers"
    assert audit_usage() == []


def test_shares_fill_one_gpu_before_the_next_and_never_overflow_it(node, alice):
    for index in range(2):
        make_gpu(node, index, allows_sharing=True)
    make_gpu(node, 2)
    got = Counter(ask(alice, Placement(0, node, SHARE)).gpus[0][0] for _ in range(6))
    assert got == {"GPU-local-0": 3, "GPU-local-1": 3}, "3 times 30 percent each; the third GPU is not shared"
    refused = ask(alice, Placement(0, node, SHARE))
    assert str(refused) == "0 of 2 shares of GPUs with 30 % and 10000 MiB left for node local, 1 requested"
    assert ask(alice, Placement(0, node, WHOLE)).gpus == {0: ("GPU-local-2",)}
    assert isinstance(ask(alice, Placement(0, node, WHOLE)), Shortage), "shared GPUs have no whole holder"
    assert audit_usage() == []


def test_a_gpu_cut_into_mig_devices_is_never_booked_whole(node, alice):
    make_gpu(node, 0)
    for index in range(2):
        make_gpu(node, index, uuid=f"MIG-{index}", mig_profile="1g.10gb", parent_uuid="GPU-local-0", memory_mib=9_856)
    assert str(ask(alice, Placement(0, node, WHOLE))) == "0 of 0 GPUs left for node local, 1 requested"
    assert ask(alice, Placement(0, node, SLICE)).gpus == {0: ("MIG-0",)}
    assert ask(alice, Placement(0, node, SLICE)).gpus == {0: ("MIG-1",)}
    assert str(ask(alice, Placement(0, node, SLICE))) == "0 of 2 MIG devices left for node local, 1 requested"


def test_a_sick_gpu_is_not_booked_and_its_holder_goes_on(node, alice):
    gpu = make_gpu(node, 0)
    attempt_id = uuid4()
    ask(alice, Placement(0, node, WHOLE), attempt_id=attempt_id)
    Gpu.objects.filter(pk=gpu.pk).update(is_healthy=False)
    assert gpus_of(attempt_id) == {0: (gpu.uuid,)}
    release(attempt_id=attempt_id)
    assert isinstance(ask(alice, Placement(0, node, WHOLE)), Shortage)


def test_the_next_attempt_keeps_the_devices_of_the_last_one(node, alice):
    make_gpu(node, 0)
    first, second = uuid4(), uuid4()
    ask(alice, Placement(0, node, WHOLE), attempt_id=first)
    with transaction.atomic():
        move_reservations(from_attempt=first, to_attempt=second)
    assert (gpus_of(first), gpus_of(second)) == ({}, {0: ("GPU-local-0",)})
    assert audit_usage() == []
    release(attempt_id=first)
    assert gpus_of(second), "the old attempt has nothing left to give back"
    release(attempt_id=second)
    assert Gpu.objects.get().cores_used == 0


def test_a_cluster_chooses_its_devices_itself_and_is_only_counted(node, alice):
    cluster = Node.objects.create(
        name="cluster", resource_group=node.resource_group, executor="slurm", assigns_gpus=True
    )
    set_cap(scope="node", scope_id=cluster.pk, resource="gpus", cap=1)
    assert ask(alice, Placement(0, cluster, WHOLE)) == Booking({})
    assert str(ask(alice, Placement(0, cluster, WHOLE))) == "0 of 1 GPUs left for node cluster, 1 requested"


def test_the_database_itself_refuses_a_second_whole_holder_and_an_overfull_gpu(node):
    gpu = make_gpu(node, 0)
    whole = {"gpu": gpu, "is_whole": True, "cores_percent": 100, "memory_mib": 40_000}
    GpuBooking.objects.create(attempt_id=uuid4(), **whole)
    with pytest.raises(IntegrityError), transaction.atomic():
        GpuBooking.objects.create(attempt_id=uuid4(), **whole)
    for columns in ({"cores_used": 101}, {"memory_used_mib": 40_001}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Gpu.objects.filter(pk=gpu.pk).update(**columns)


def test_drift_of_a_gpu_is_told_and_not_repaired(node, alice):
    make_gpu(node, 0)
    ask(alice, Placement(0, node, WHOLE))
    Gpu.objects.update(cores_used=40)
    assert audit_usage() == [
        "I2: GPU-local-0 has 40 % and 40000 MiB in use but open bookings sum to 100 % and 40000 MiB"
    ]
    assert Gpu.objects.get().cores_used == 40


@pytest.mark.django_db(transaction=True)
def test_a_storm_never_gives_one_gpu_to_two_holders(home, node, alice):
    for index in range(4):
        make_gpu(node, index, allows_sharing=index > 1)
    held: Counter[str] = Counter()
    twice: list[str] = []
    guard, barrier = threading.Lock(), threading.Barrier(16)

    def take_and_give_back(number: int) -> None:
        wanted = SHARE if number % 4 == 3 else WHOLE
        barrier.wait()
        for _ in range(6):
            attempt_id = uuid4()
            booked = ask(alice, Placement(0, node, wanted), attempt_id=attempt_id)
            if isinstance(booked, Shortage):
                continue
            (uuid,) = booked.gpus[0]
            part = 30 if wanted is SHARE else 100
            with guard:
                held[uuid] += part
                twice.extend([uuid] * (held[uuid] > 100))
                held_before_release = held[uuid]
            assert held_before_release > 0
            with guard:
                held[uuid] -= part
            with transaction.atomic():
                release(attempt_id=attempt_id)
        connection.close()

    threads = [threading.Thread(target=take_and_give_back, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert twice == []
    assert audit_usage() == []
    assert set(Gpu.objects.values_list("cores_used", "memory_used_mib")) == {(0, 0)}
    assert GpuBooking.objects.count() > 0
