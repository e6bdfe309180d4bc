"""Large files: memory stays flat and row N comes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clavier.core.actor import Actor
from datasets_app import services
from datasets_app.preview import read_rows
from tests.conftest import Spool

ROOT = Path(__file__).resolve().parents[2]
ROWS = 200_000
#: Peak resident memory of the gate in a process of its own, before and while it reads.
MEASURE = """
import resource, sys
from pathlib import Path
import django
django.setup()
from datasets_app.gate import examine
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = Path(sys.argv[1])
report = examine(path, path.parent, file_format=path.suffix[1:])
print(report.num_samples, len(report.findings.listed_errors()),
      (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def write_rows(path: Path) -> None:
    """200,000 rows of about 400 bytes."""
    text = "the model learns to answer questions about weather, music and trains " * 3
    with path.open("w") as stream:
        if path.suffix == ".csv":
            stream.write("question,answer\n")
            stream.writelines(f'"q{n} {text}","{text}"\n' for n in range(ROWS))
        elif path.suffix == ".json":
            stream.write("[\n")
            stream.writelines(
                (",\n" if n else "") + json.dumps({"question": f"q{n} {text}", "answer": text}) for n in range(ROWS)
            )
            stream.write("]\n")
        elif path.suffix == ".jsonl":
            stream.writelines(json.dumps({"question": f"q{n} {text}", "answer": text}) + "\n" for n in range(ROWS))
        else:
            stream.writelines(f"q{n} {text}{text}\n" for n in range(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "txt"])
def test_memory_stays_flat_over_many_rows(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"original.{file_format}"
    write_rows(path)
    environment = {**os.environ, "CLAVIER_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    environment.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    samples, errors, grown_mib = map(int, done.stdout.split())
    assert (samples, errors) == (ROWS, 0)
    # The file has about 85 MB; the memory is that of the rows remembered for repetitions and the windows.
    assert grown_mib < 80


@pytest.mark.slow
@pytest.mark.django_db
def test_any_row_of_a_large_file_comes_at_once(alice: Actor, spooled: Spool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path)
    version = services.create_dataset_with_file(
        actor=alice, name="large", upload=spooled(path.read_bytes()), file_name="rows.jsonl"
    )
    times = []
    for start in range(0, ROWS, ROWS // 100):
        began = time.perf_counter()
        rows = read_rows(version, start, 10)
        times.append(time.perf_counter() - began)
        assert [row["question"].split()[0] for row in rows] == [f"q{start + n}" for n in range(10)]
    assert sorted(times)[50] < 0.005
