"""Fill what the scheduler asks about from the specs of existing runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from django.db import migrations

FIELDS = ("is_urgent", "preemptible", "num_containers", "cpu_milli", "memory_mib", "gpus", "shape", "queued_at")
BATCH = 500
#: The resources of a container in a spec that was written before a name was known.
NOTHING = {
    "cpu_milli": 1000, "memory_mib": 2048, "gpus": 0, "gpu_cores_percent": 0, "gpu_memory_mib": 0, "mig_profile": "",
    "mig_devices": 0, "shm_mib": 64,
}  # fmt: skip


def fill(apps: Any, schema_editor: Any) -> None:
    """In batches, so that a long history fits into memory."""
    runs = apps.get_model("runs", "Run")
    batch = []
    for run in runs.objects.only("pk", "spec", "created_at").iterator(chunk_size=BATCH):
        fill_one(run)
        batch.append(run)
        if len(batch) == BATCH:
            runs.objects.bulk_update(batch, FIELDS)
            batch = []
    runs.objects.bulk_update(batch, FIELDS)


def fill_one(run: Any) -> None:
    """The sums over the containers of one run."""
    spec = run.spec
    roles = spec.get("roles") or [{"count": 1, "resources": spec["resources"]}]
    containers = [NOTHING | role["resources"] for role in roles for _ in range(role["count"])]
    run.is_urgent, run.preemptible = spec.get("is_urgent", False), spec.get("preemptible", False)
    run.num_containers = len(containers)
    for name in ("cpu_milli", "memory_mib", "gpus"):
        setattr(run, name, sum(container[name] for container in containers))
    names = sorted(spec.get("node_names", ()))
    digest = hashlib.sha256(json.dumps([containers, names], sort_keys=True).encode()).hexdigest()
    run.shape = ("+" + digest if len(containers) > 1 or names else digest)[:32]
    run.queued_at = run.created_at


def keep(apps: Any, schema_editor: Any) -> None:
    """Nothing was lost by filling."""


class Migration(migrations.Migration):
    dependencies = [("runs", "0005_preempted_runs_wait_again")]
    operations = [migrations.RunPython(fill, keep)]
