"""One of many processes that reserve and release at once: ``python -m tests.platform.quotas.storm`` with JSON on stdin.

Each grant leaves a witness outside the database: a file that only one holder of a GPU can make, and a file per run in
a folder that never has more of them than the cap. Prints one JSON line: what it was granted and what went wrong.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4


def main() -> None:
    """Wait for the start, then ask again and again."""
    import django

    django.setup()
    facts = json.loads(sys.stdin.readline())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    go = Path(facts["folder"]) / "go"
    while not go.exists():
        time.sleep(0.005)
    told = {"granted": 0, "refused": 0, "kept": [], "wrong": []}
    dice = random.Random(facts["seed"])
    for _ in range(facts["rounds"]):
        one_round(facts, dice, told)
    for _ in range(facts["keep"]):
        attempt_id = uuid4()
        if ask(facts, attempt_id, {"cpu_milli": 100, "memory_mib": 64}) is not None:
            told["kept"].append(str(attempt_id))
    sys.stdout.write(json.dumps(told) + "\n")


def one_round(facts: dict[str, Any], dice: random.Random, told: dict[str, Any]) -> None:
    """Reserve, look at the witnesses, release."""
    from django.db import transaction

    from clavier.quotas.services import release

    attempt_id = uuid4()
    gpu: dict[str, Any] = dice.choice(facts["wishes"])
    devices = ask(facts, attempt_id, {"cpu_milli": 100, "memory_mib": 64, **gpu})
    if devices is None:
        told["refused"] += 1
        return
    told["granted"] += 1
    runs, held = Path(facts["folder"]) / "runs", Path(facts["folder"]) / "gpus"
    mark = runs / str(attempt_id)
    mark.touch()
    if (count := len(os.listdir(runs))) > facts["cap"]:
        told["wrong"].append(f"{count} runs at once, the cap is {facts['cap']}")
    if gpu.get("gpus") or gpu.get("mig_devices"):
        for uuid in devices:
            try:
                os.close(os.open(held / uuid, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                told["wrong"].append(f"{uuid} has two holders")
        time.sleep(dice.random() * 0.01)
        for uuid in devices:
            (held / uuid).unlink(missing_ok=True)
    mark.unlink()
    with transaction.atomic():
        release(attempt_id=attempt_id)


def ask(facts: dict[str, Any], attempt_id: UUID, resources: dict[str, Any]) -> tuple[str, ...] | None:
    """The devices of a grant, or None."""
    from django.db import transaction

    from clavier.quotas.models import Node
    from clavier.quotas.services import Placement, Shortage, reserve
    from runner.contract.run_spec import Resources

    node = Node.objects.get(name="local")
    with transaction.atomic():
        booked = reserve(
            attempt_id=attempt_id,
            tenant_id=UUID(facts["tenant"]),
            user_id=UUID(facts["user"]),
            placements=[Placement(0, node, Resources(**resources))],
        )
    return None if isinstance(booked, Shortage) else booked.gpus.get(0, ())


if __name__ == "__main__":
    main()
