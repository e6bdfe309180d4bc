"""Sixteen processes reserve and release as fast as they can, and three of them are killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection, transaction

from clavier.core.actor import Actor
from clavier.quotas.audit import audit_holders, audit_usage
from clavier.quotas.models import Gpu, GpuBooking, Reservation, Usage
from clavier.quotas.services import count_devices, ensure_local_node, release, set_cap

PROCESSES, ROUNDS, CAP, KEEP = 16, 25, 9, 2
WISHES = [
    {},
    {"gpus": 1},
    {"gpus": 2},
    {"gpu_cores_percent": 40, "gpu_memory_mib": 10_000},
    {"mig_profile": "1g.10gb", "mig_devices": 1},
]

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


@pytest.fixture
def facts(home: Path, alice: Actor, tmp_path: Path) -> dict[str, Any]:
    """Four GPUs, two of them shared, two MIG devices, and a tenant that may have nine runs."""
    node = ensure_local_node()
    for resource in ("cpu_milli", "memory_mib"):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=10**9)
    for index in range(4):
        Gpu.objects.create(uuid=f"GPU-{index}", node=node, index=index, memory_mib=40_000, allows_sharing=index > 1)
    for index in range(2):
        Gpu.objects.create(uuid=f"MIG-{index}", node=node, memory_mib=9_000, mig_profile="1g.10gb", parent_uuid="GPU-x")
    count_devices(node)
    set_cap(scope="tenant", scope_id=alice.tenant_id, resource="running_runs", cap=CAP)
    for name in ("runs", "gpus"):
        (tmp_path / name).mkdir()
    return {"folder": str(tmp_path), "tenant": str(alice.tenant_id), "user": str(alice.user_id), "cap": CAP,
            "rounds": ROUNDS, "keep": KEEP, "wishes": WISHES}  # fmt: skip


def database_url() -> str:
    """Of the database that this test uses."""
    found = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{found['NAME']}"
    return f"postgres://{found['USER']}@{found['HOST']}:{found['PORT']}/{found['NAME']}"


def start(facts: dict[str, Any], seed: int) -> subprocess.Popen[str]:
    """One process, waiting for the start."""
    environment = os.environ | {"DATABASE_URL": database_url(), "CLAVIER_HOME": str(settings.CLAVIER_HOME),
                                "DJANGO_SETTINGS_MODULE": "clavier.config.settings"}  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join([str(settings.BASE_DIR), str(settings.BASE_DIR / "platform")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.platform.quotas.storm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment, cwd=settings.BASE_DIR, text=True,
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(json.dumps(facts | {"seed": seed}) + "\n")
    process.stdin.flush()
    return process


def test_no_cap_is_passed_no_gpu_has_two_holders_and_nothing_leaks(facts: dict[str, Any]) -> None:
    connection.close()  # nothing of this process may hold the database
    processes = [start(facts, seed) for seed in range(PROCESSES)]
    victims, others = processes[:3], processes[3:]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    (Path(facts["folder"]) / "go").touch()
    for process in victims:
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    told = [json.loads(process.communicate(timeout=240)[0]) for process in others]
    for process in victims:
        process.communicate()
    assert [sentence for one in told for sentence in one["wrong"] if sentence] == []
    assert sum(one["granted"] for one in told) > 0
    assert sum(one["refused"] for one in told) > 0, "the caps were never reached: the storm proves nothing"

    assert audit_usage() == []
    assert audit_holders() == []
    kept = {UUID(attempt_id) for one in told for attempt_id in one["kept"]}
    held = set(Reservation.objects.filter(released_at=None).values_list("attempt_id", flat=True))
    orphans = held - kept
    assert kept <= held
    assert len(orphans) <= len(victims), "a process that was killed held one attempt at most"
    assert len(held) == CAP, "26 more were asked for and kept: the cap is full, exactly"
    assert Usage.objects.get(scope="tenant", resource="running_runs").used == CAP
    for attempt_id in held:
        with transaction.atomic():
            release(attempt_id=attempt_id)
    assert set(Usage.objects.values_list("used", flat=True)) == {0}
    assert set(Gpu.objects.values_list("cores_used", "memory_used_mib")) == {(0, 0)}
    assert not GpuBooking.objects.filter(released_at=None).exists()
