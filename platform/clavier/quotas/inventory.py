"""Which GPUs there are: declared by an operator, or read from the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from django.db import transaction
from django.utils import timezone

from clavier.core.errors import Conflict, Invalid, NotFound, quoted
from clavier.quotas.models import Gpu, Node
from clavier.quotas.nvidia import Device, InventoryError, profile_memory_mib, read_devices
from clavier.quotas.services import count_devices

UUID_FORM = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{0,74}")


def declare_gpu(*, node: Node, device: Device, allows_sharing: bool | None = None) -> Gpu:
    """Add a device to a node, or change it. ``allows_sharing`` None: as it was, or not.

    Raises Invalid; Conflict (``in_use``) for another node, memory or profile while runs hold it.
    """
    check_device(device)
    with transaction.atomic():
        gpu = Gpu.objects.select_for_update().filter(uuid=device.uuid).first() or Gpu(uuid=device.uuid, node=node)
        held = gpu.cores_used or gpu.memory_used_mib
        before, after = (gpu.node_id, gpu.memory_mib, gpu.mig_profile), (node.pk, device.memory_mib, device.mig_profile)
        if held and before != after:
            raise Conflict(
                f"{gpu.uuid} is held by runs; its node, memory and profile change when they have ended.", code="in_use"
            )
        former = gpu.node
        gpu.node, gpu.index, gpu.name, gpu.memory_mib = node, device.index, device.name[:100], device.memory_mib
        gpu.mig_profile, gpu.parent_uuid, gpu.is_present = device.mig_profile, device.parent_uuid, True
        if allows_sharing is not None:
            gpu.allows_sharing = allows_sharing
        gpu.save()
        for changed in {former.pk: former, node.pk: node}.values():
            count_devices(changed)
    return gpu


def forget_gpu(*, uuid: str) -> None:
    """Take a device out. Raises NotFound, Conflict (``in_use``) while runs hold it."""
    with transaction.atomic():
        gpu = Gpu.objects.select_for_update().select_related("node").filter(uuid=uuid).first()
        if gpu is None:
            raise NotFound(f"There is no GPU {quoted(uuid)}.", field="uuid")
        if gpu.cores_used or gpu.memory_used_mib:
            raise Conflict(f"{uuid} is held by runs; forget it when they have ended.", code="in_use", field="uuid")
        gpu.bookings.all().delete()
        gpu.delete()
        count_devices(gpu.node)


def record_devices(*, node: Node, devices: Sequence[Device]) -> list[str]:
    """Make a node's rows what its machine lists; what was done, in words. Rows that runs hold stay as they are.

    A device that is missing is kept and not booked until it is listed again.
    """
    said = []
    with transaction.atomic():
        known = {gpu.uuid: gpu for gpu in Gpu.objects.filter(node=node)}
        for device in devices:
            try:
                declare_gpu(node=node, device=device)
            except Conflict as refusal:
                said.append(refusal.message)
                continue
            if device.uuid not in known:
                said.append(f"{device.uuid} is new: {device.name}, {device.memory_mib} MiB.")
        listed = {device.uuid for device in devices}
        for uuid, gpu in known.items():
            if uuid not in listed and gpu.is_present:
                said.append(f"{uuid} is no longer listed; it is not booked until it is.")
                Gpu.objects.filter(pk=uuid).update(is_present=False)
        Node.objects.filter(pk=node.pk).update(last_seen_at=timezone.now())
        count_devices(node)
    return said


def scan_gpus(*, node: Node) -> list[str]:
    """Read this machine's devices into the rows of its node; what changed, in words.

    A machine without nvidia-smi leaves what was declared. Raises Invalid when nvidia-smi fails.
    """
    try:
        devices = read_devices()
    except InventoryError as error:
        raise Invalid(str(error), code="inventory_failed") from error
    return record_devices(node=node, devices=devices) if devices else []


def check_device(device: Device) -> None:
    """Raises Invalid for an id, a memory or a profile that can not be."""
    if UUID_FORM.fullmatch(device.uuid) is None:
        raise Invalid(
            f"uuid {quoted(device.uuid)} is no id such as GPU-... or MIG-... of nvidia-smi -L.",
            code="bad_value",
            field="uuid",
        )
    if not 0 < device.memory_mib <= 2**31 - 1:
        raise Invalid(
            f"memory_mib {device.memory_mib} is not from 1 to {2**31 - 1}.", code="out_of_range", field="memory_mib"
        )
    if device.mig_profile:
        try:
            profile_memory_mib(device.mig_profile)
        except InventoryError as error:
            raise Invalid(f"mig_profile: {error}", code="bad_value", field="mig_profile") from error
