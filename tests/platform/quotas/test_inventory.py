"""The GPUs of a machine, from the texts that NVIDIA documents, and what an operator declares of others."""

from __future__ import annotations

import json
from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from clavier.core.errors import Conflict, Invalid
from clavier.quotas.inventory import declare_gpu, forget_gpu, record_devices, scan_gpus
from clavier.quotas.models import Gpu, Node, Usage
from clavier.quotas.nvidia import Device, InventoryError, Load, parse_devices, parse_load, read_load
from clavier.quotas.services import Booking, Placement, ensure_local_node, release, reserve
from runner.contract.run_spec import Resources

A100, OTHER = "GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0", "GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c"
TABLE = f"0, {A100}, NVIDIA A100-SXM4-40GB, 40536\n1, {OTHER}, NVIDIA A100-SXM4-40GB, 40536\n"
WITH_HEADER = f"index, uuid, name, memory.total [MiB]\n0, {A100}, NVIDIA A100-SXM4-40GB, 40536 MiB\n"
PLAIN = f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A100})\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: {OTHER})\n"
#: As in the MIG User Guide, of driver 470 and later, and of drivers before.
SLICED = f"""GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A100})
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {OTHER})
  MIG 1g.5gb+me Device 0: (UUID: MIG-{OTHER}/7/0)
"""


def test_whole_gpus_are_read_with_and_without_header_and_units():
    assert parse_devices(TABLE, PLAIN) == [
        Device(A100, 0, "NVIDIA A100-SXM4-40GB", 40536),
        Device(OTHER, 1, "NVIDIA A100-SXM4-40GB", 40536),
    ]
    assert parse_devices(WITH_HEADER, "") == [Device(A100, 0, "NVIDIA A100-SXM4-40GB", 40536)]


def test_mig_devices_are_read_in_both_forms_with_their_parent():
    found = parse_devices(TABLE, SLICED)[2:]
    assert [(gpu.uuid, gpu.mig_profile, gpu.index, gpu.memory_mib, gpu.parent_uuid) for gpu in found] == [
        ("MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "3g.20gb", 0, 20480, A100),
        ("MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d", "1c.3g.20gb", 1, 20480, A100),
        (f"MIG-{OTHER}/7/0", "1g.5gb+me", 0, 5120, OTHER),
    ]


@pytest.mark.parametrize(
    ("table", "listing", "words"),
    [
        ("0, GPU-1\n", "", "is no line of index,uuid,name,memory.total"),
        ("0, GPU-1, x, [N/A]\n", "", "'[N/A]' is no number"),
        (TABLE, "Failed to initialize NVML: Driver/library version mismatch\n", "neither a GPU nor a MIG device"),
        (TABLE, "  MIG 1g.5gb Device 0: (UUID: MIG-x)\n", "belongs to no GPU"),
    ],
)
def test_what_is_not_understood_is_an_error_and_not_no_gpus(table, listing, words):
    with pytest.raises(InventoryError) as error:
        parse_devices(table, listing)
    assert words in str(error.value)


def test_load_is_read_and_what_does_not_tell_is_left_out():
    table = f"uuid, utilization.gpu [%], memory.used [MiB]\n{A100}, 37 %, 1024 MiB\n{OTHER}, [N/A], 12 MiB\n"
    assert parse_load(table) == {A100: Load(37, 1024)}


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A stand-in on PATH that prints the given texts."""

    def install(table: str, listing: str, code: int = 0) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "table").write_text(table)
        (folder / "listing").write_text(listing)
        script = folder / "nvidia-smi"
        script.write_text(f'#!/bin/sh\n[ "$1" = -L ] && cat {folder}/listing || cat {folder}/table\nexit {code}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return install


@pytest.fixture
def node(home, monkeypatch) -> Node:
    monkeypatch.setenv("PATH", "/nowhere")
    return ensure_local_node()


@pytest.mark.django_db
def test_a_scan_records_devices_counts_them_and_keeps_what_goes_missing(node, nvidia_smi):
    nvidia_smi(TABLE, SLICED)
    assert len(scan_gpus(node=node)) == 5
    caps = dict(Usage.objects.filter(scope="node").values_list("resource", "cap"))
    assert (caps["gpus"], caps["mig_devices"]) == (0, 3)
    assert scan_gpus(node=node) == []
    nvidia_smi(TABLE.splitlines()[0], PLAIN.splitlines()[0])
    assert len(scan_gpus(node=node)) == 4
    assert Usage.objects.get(scope="node", resource="mig_devices").cap == 0
    assert Gpu.objects.filter(is_present=False).count() == 4
    nvidia_smi(TABLE, PLAIN)
    scan_gpus(node=node)
    assert Gpu.objects.get(uuid=OTHER).is_present
    node.refresh_from_db()
    assert node.last_seen_at is not None


@pytest.mark.django_db
def test_a_machine_without_nvidia_smi_leaves_what_was_declared(node):
    declare_gpu(node=node, device=Device(A100, 0, "A100", 40_000))
    assert scan_gpus(node=node) == []
    assert Gpu.objects.get().is_present
    assert read_load() == {}


@pytest.mark.django_db
def test_an_nvidia_smi_that_fails_changes_nothing_and_is_quoted(node, nvidia_smi):
    declare_gpu(node=node, device=Device(A100, 0, "A100", 40_000))
    nvidia_smi("Unable to determine the device handle for GPU0000:3B:00.0\n", "", code=15)
    with pytest.raises(Invalid, match="ended with 15: Unable to determine") as refusal:
        scan_gpus(node=node)
    assert refusal.value.code == "inventory_failed"
    assert Gpu.objects.get().is_present


@pytest.mark.django_db
def test_a_device_that_runs_hold_does_not_change_under_them(node, alice):
    declare_gpu(node=node, device=Device(A100, 0, "A100", 40_000))
    attempt_id = uuid4()
    with transaction.atomic():
        booked = reserve(
            attempt_id=attempt_id,
            tenant_id=alice.tenant_id,
            user_id=alice.user_id,
            placements=[Placement(0, node, Resources(cpu_milli=1, memory_mib=1, gpus=1))],
        )
    assert isinstance(booked, Booking)
    with pytest.raises(Conflict, match="is held by runs"):
        declare_gpu(node=node, device=Device(A100, 0, "A100", 80_000))
    with pytest.raises(Conflict, match="is held by runs"):
        forget_gpu(uuid=A100)
    assert record_devices(node=node, devices=[Device(A100, 0, "A100", 80_000)]) != []
    declare_gpu(node=node, device=Device(A100, 3, "renamed", 40_000), allows_sharing=True)
    release(attempt_id=attempt_id)
    forget_gpu(uuid=A100)
    assert not Gpu.objects.exists()
    assert Usage.objects.get(scope="node", resource="gpus").cap == 0


@pytest.mark.django_db
def test_the_command_declares_lists_and_forgets(node):
    def told(*words: str) -> str:
        out = StringIO()
        call_command("gpus", *words, stdout=out)
        return out.getvalue()

    other = Node.objects.create(name="far", resource_group=node.resource_group, executor="fake")
    assert "declared on far" in told("declare", "far", A100, "--memory-mib", "81559", "--name", "H100", "--shared")
    told("declare", "far", "MIG-1", "--memory-mib", "9856", "--mig", "1g.10gb", "--parent", OTHER)
    assert "shared   GPU-e86cb44c" in told("list")
    rows = [json.loads(line) for line in told("list", "--json").splitlines()]
    assert [(row["node"], row["mig_profile"], row["memory_mib"]) for row in rows] == [
        ("far", "", 81559),
        ("far", "1g.10gb", 9856),
    ]
    assert Usage.objects.get(scope_id=other.pk, resource="mig_devices").cap == 1
    told("forget", "MIG-1")
    assert "Nothing changed" in told("scan")
    for words in (
        ["forget", "MIG-1"],
        ["declare", "nowhere", A100, "--memory-mib", "1"],
        ["declare", "far", "0", "--memory-mib", "1"],
        ["declare", "far", "GPU-2", "--memory-mib", "0"],
        ["declare", "far", "MIG-2", "--memory-mib", "1", "--mig", "big"],
    ):
        with pytest.raises(CommandError):
            told(*words)
