"""Large files: memory stays flat and row N comes at once."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from clavier.core.actor import Actor
from clavier.core.errors import StorageFull
from clavier.files.models import StorageUsage
from datasets_app import ceiling, services
from datasets_app.gate import examine
from datasets_app.preview import read_rows
from datasets_app.storage import ROWS as ROWS_FILE
from tests.cases.datasets import workbook
from tests.conftest import Spool, left_behind

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
    # The file has about 85 MB; the memory is that of the rows remembered for repetitions and the windows.
    samples, errors, grown_mib = measured(path, tmp_path)
    assert (samples, errors) == (ROWS, 0)
    assert grown_mib < 80


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["parquet", "xlsx"])
def test_a_text_that_many_rows_share_is_in_memory_for_few_of_them(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"original.{file_format}"
    path.write_bytes(bomb(file_format, "a" * 2**22, 100))
    assert path.stat().st_size < 100_000
    samples, errors, grown_mib = measured(path, tmp_path)
    assert (samples, errors) == (100, 0)
    assert grown_mib < 200


def bomb(file_format: str, text: str, count: int) -> bytes:
    """A small file of so many rows, all of them of this one text."""
    if file_format == "parquet":
        sink = pyarrow.BufferOutputStream()
        options = {"compression": "zstd", "store_schema": False, "write_statistics": False}
        shared = pyarrow.DictionaryArray.from_arrays([0] * count, [text])
        pyarrow.parquet.write_table(pyarrow.table({"text": shared}), sink, dictionary_pagesize_limit=2**30, **options)
        return bytes(sink.getvalue())
    if file_format == "csv":
        return f"{text}\n".encode() + b"1\n" * count
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    texts = f"<sst {space}><si><t>text</t></si><si><t>{text}</t></si></sst>"
    cells = "".join(f'<row><c t="s"><v>{min(number, 1)}</v></c></row>' for number in range(count + 1))
    sheet = f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>"
    parts = {"xl/sharedStrings.xml": texts, "xl/worksheets/sheet1.xml": sheet}
    with zipfile.ZipFile(io.BytesIO(workbook(["text"]))) as book:
        kinds = book.read("[Content_Types].xml").decode()
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    if kind not in kinds:
        kinds = kinds.replace("</Types>", f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}"/></Types>')
    return workbook(["text"], parts=parts | {"[Content_Types].xml": kinds})


def measured(path: Path, home: Path) -> list[int]:
    """Rows, errors and MiB that the gate takes in a process of its own."""
    environment = {**os.environ, "CLAVIER_HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    environment.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("file_format", ["parquet", "xlsx", "csv"])
def test_rows_that_unpack_without_end_are_refused_before_they_fill_the_disk(
    file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "LEAST_BYTES", 2**20)
    path = tmp_path / f"original.{file_format}"
    path.write_bytes(bomb(file_format, "a" * 65_536, 300))
    report = examine(path, tmp_path, file_format=file_format)
    assert [item.reason for item in report.findings.listed_errors()] == ["too_large"]
    assert "MiB, the most for a file of its size" in report.findings.listed_errors()[0].message
    assert (tmp_path / ROWS_FILE).stat().st_size < 4 * 2**20


@pytest.mark.django_db
def test_rows_for_which_no_storage_is_left_are_refused_while_they_are_written(
    alice: Actor, spooled: Spool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "STEP_BYTES", 2**20)
    limits = StorageUsage.objects.create(
        tenant_id=alice.tenant_id, user_id=alice.user_id, bytes_limit=3 * 2**20, inodes_limit=100
    )
    content = bomb("parquet", "a" * 65_536, 300)
    with pytest.raises(StorageFull, match=r"3\.0 MiB of storage left"):
        services.create_dataset_with_file(actor=alice, name="b", upload=spooled(content), file_name="b.parquet")
    StorageUsage.objects.filter(pk=limits.pk).update(bytes_limit=2**40)

    def full(*_: object) -> None:
        raise StorageFull("The platform's disk has 0 MiB free.")

    monkeypatch.setattr(services, "refuse_low_disk", full)
    with pytest.raises(StorageFull, match="0 MiB free"):
        services.create_dataset_with_file(actor=alice, name="b", upload=spooled(content), file_name="b.parquet")
    assert left_behind(home) == []


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
