"""Fill what the scheduler asks about from the specs of existing runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from django.db import migrations

FIELDS = ("is_urgent", "preemptible", "num_containers", "cpu_milli", "memory_mib", "gpus", "shape", "queued_at")
BATCH = 500


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
    run.is_urgent, run.preemptible = spec.get("is_urgent", False), spec.get("preemptible", False)
    run.num_containers = sum(role["count"] for role in roles)
    for name in ("cpu_milli", "memory_mib", "gpus"):
        setattr(run, name, sum(role["count"] * role["resources"].get(name, 0) for role in roles))
    needs = [[[role["count"], role["resources"]] for role in roles], sorted(spec.get("node_names", ()))]
    run.shape = hashlib.sha256(json.dumps(needs, sort_keys=True).encode()).hexdigest()[:32]
    run.queued_at = run.created_at


def keep(apps: Any, schema_editor: Any) -> None:
    """Nothing was lost by filling."""


class Migration(migrations.Migration):
    dependencies = [("runs", "0004_preempted_runs_wait_again")]
    operations = [migrations.RunPython(fill, keep)]
