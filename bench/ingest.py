"""The data gate beside json + pydantic and pydantic alone, its memory, and row N of a large file through HTTP (bar P9).

`make bench NAME=ingest` prints one JSON line per measure. CPU seconds of one process, interleaved, ABBA; medians. The
gate's time is that of the whole pass: also repeated rows, personal data, secrets, labels, and the index.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from bench.corpus import MIB, write_conversations
from bench.front import ROOT, running

SMALL_MIB, LARGE_MIB = 256, int(os.environ.get("BENCH_LARGE_MIB", "1024"))
ROUNDS = 5
REQUESTS = 1000


def gate(path: Path) -> dict[str, float]:
    """One pass in this process: CPU seconds, and the process's largest memory in MiB."""
    from datasets_app.gate import examine

    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        original = Path(place) / "original.jsonl"
        original.hardlink_to(path)
        began = time.process_time()
        report = examine(original, Path(place), file_format="jsonl")
        took = time.process_time() - began
    assert report.is_usable, report.findings.items
    return {"cpu_s": took, "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def by_json_and_pydantic(path: Path) -> dict[str, float]:
    """The same schema, roles, hash, index and lengths: each line decoded by json, then checked by pydantic."""
    return by_pydantic(path, is_decoded_before=True)


def by_pydantic(path: Path, *, is_decoded_before: bool = False) -> dict[str, float]:
    """The same by pydantic alone, which decodes and checks in one go."""
    from pydantic import BaseModel

    class Message(BaseModel):
        role: Literal["system", "user", "assistant", "tool"]
        content: str

    class Sample(BaseModel):
        messages: list[Message]

    began, digest, offsets, lengths, position = time.process_time(), hashlib.sha256(), [], [], 0
    with open(path, "rb") as stream:
        for line in stream:
            digest.update(line)
            if is_decoded_before:
                Sample.model_validate(json.loads(line))
            else:
                Sample.model_validate_json(line)
            offsets.append(position)
            lengths.append(len(line))
            position += len(line)
    return {"cpu_s": time.process_time() - began, "memory_mib": 0.0}


def measured(what: str, path: Path) -> dict[str, float]:
    """One of them in a process of its own."""
    command = [sys.executable, "-m", "bench.ingest", what, str(path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    found: dict[str, float] = json.loads(subprocess.check_output(command, cwd=ROOT, env=environment))
    return found


def rows_through_http(path: Path, home: Path) -> dict[str, Any]:
    """Latency of one row at a random place of a version of that file, on one connection."""
    os.environ |= {"CLAVIER_HOME": str(home), "DJANGO_SETTINGS_MODULE": "clavier.config.settings"}
    import django

    django.setup()
    from django.conf import settings
    from django.core.files.uploadedfile import TemporaryUploadedFile
    from django.core.management import call_command

    from clavier.accounts.services import create_api_key, create_user
    from clavier.core.actor import Actor
    from datasets_app.services import create_dataset, upload_version

    call_command("migrate", verbosity=0)
    Path(settings.FILE_UPLOAD_TEMP_DIR).mkdir(parents=True, exist_ok=True)
    user, tenant = create_user(username="bench", tenant_name="bench", password="bench-secret-1")
    _, key = create_api_key(user=user, tenant=tenant, name="bench")
    actor = Actor(user.pk, user.username, tenant.pk, tenant.name, "owner")
    upload = TemporaryUploadedFile("large.jsonl", "application/x-ndjson", path.stat().st_size, None)
    with open(path, "rb") as stream:
        while piece := stream.read(MIB):
            upload.write(piece)
    upload.seek(0)
    dataset = create_dataset(actor=actor, name="large")
    version = upload_version(actor=actor, dataset=dataset, upload=upload, file_name="large.jsonl")
    chance, times = random.Random(7), []
    with running("wsgi", "clavier.config.wsgi:application", None, {}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(REQUESTS + 50):
            place = chance.randrange(version.num_samples)
            began = time.perf_counter()
            address = f"/api/v1/dataset-versions/{version.pk}/rows?start={place}&count=1"
            connection.request("GET", address, headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            body = answer.read()
            times.append(time.perf_counter() - began)
            assert answer.status == 200, body
        cpu_ms = server.cpu_s() / (REQUESTS + 50) * 1000
    times = sorted(times[50:])
    return {
        "measure": "row", "file_mib": path.stat().st_size // MIB, "rows": version.num_samples,
        "p50_ms": round(times[len(times) // 2] * 1000, 2), "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
        "server_cpu_ms_a_request_with_its_start": round(cpu_ms, 2), "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """All measures, one line each."""
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place) / "small.jsonl", Path(place) / "large.jsonl"
        write_conversations(small, SMALL_MIB * MIB)
        took: dict[str, list[float]] = {name: [] for name in SIDES}
        for number in range(ROUNDS):
            for name in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                took[name].append(measured(name, small)["cpu_s"])
        size = small.stat().st_size / 1e6
        line: dict[str, Any] = {"measure": "gate", "mb": round(size), "load": os.getloadavg()[0]}
        line |= {f"{name}_mb_per_cpu_s": round(size / statistics.median(times)) for name, times in took.items()}
        for name in list(SIDES)[1:]:
            ratios = sorted(a / b for a, b in zip(took[name], took["gate"], strict=True))
            line[f"times_{name}"] = [round(x, 2) for x in (ratios[0], statistics.median(ratios), ratios[-1])]
        print(json.dumps(line), flush=True)
        small.unlink()
        write_conversations(large, LARGE_MIB * MIB)
        memory = measured("gate", large)["memory_mib"]
        print(json.dumps({"measure": "memory", "mib_of_file": LARGE_MIB, "memory_mib": round(memory)}), flush=True)
        print(json.dumps(rows_through_http(large, Path(place) / "home")), flush=True)


SIDES = {"gate": gate, "json_and_pydantic": by_json_and_pydantic, "pydantic": by_pydantic}

if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(SIDES[sys.argv[1]](Path(sys.argv[2]))))
    else:
        main()
