"""Bad input: files of data sets, each uploaded as a data set's first version."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from runner.programs.lib.events import ProgramError, Reporter
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.render import Renderer
from runner.programs.train.sft import read_samples
from tests.api.native.test_files import content_of
from tests.cases.registry import ENGLISH, Later, Scene, case
from tests.programs.tiny_models import write_tiny_tokenizer

URL = "/api/v1/datasets"
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE sst [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>&c;</t></si></sst>'
)


def turns(*messages: dict[str, Any]) -> bytes:
    """One row of a conversation."""
    return json.dumps({"messages": messages}).encode()


def said(*roles: str) -> bytes:
    """One row of turns by these roles."""
    return turns(*({"role": role, "content": "x"} for role in roles))


def workbook(*rows: list[Any], parts: Mapping[str, str | bytes] | None = None) -> bytes:
    """An XLSX file of one sheet; ``parts``: parts of it that are added, or take the place of the right ones."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    written, changed = io.BytesIO(), io.BytesIO()
    book.save(written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target:
        for name, part in ({name: source.read(name) for name in source.namelist()} | (parts or {})).items():
            target.writestr(name, part)
    return changed.getvalue()


def footer_past_the_file() -> bytes:
    """A Parquet file whose footer is longer than the file."""
    return b"PAR1" + bytes(20) + (2**31).to_bytes(4, "little") + b"PAR1"


ROW = {"question": "q", "answer": "a"}
LORA = {**ROW, "target_modules": "q", "rank": 0}
#: Case -> file name, purpose, content.
REFUSED: dict[str, tuple[str, str, bytes | Callable[[], bytes]]] = {
    "DATA-001": ("x.jsonl", "", b""),
    "DATA-002": ("x.jsonl", "", b"\n\n"),
    "DATA-004": ("x.jsonl", "", json.dumps([ROW, ROW]).encode()),
    "DATA-005": ("x.jsonl", "", lambda: b'{"text":"' + b"a" * (64 << 20) + b'"}\n'),
    "DATA-007": ("x.jsonl", "", '{"question":"问题","answer":"答案"}'.encode("gbk")),
    "DATA-010": ("x.jsonl", "", b'{"text":"\\ud800"}'),
    "DATA-011": ("x.jsonl", "", b'{"text":1,"text":2}'),
    "DATA-012": ("x.jsonl", "", b"[" * 5000),
    "DATA-013": ("x.jsonl", "sft", b'{"conversation_id":"1"}'),
    "DATA-015": ("x.jsonl", "sft", said("user")),
    "DATA-017": ("x.jsonl", "sft", said("user", "user", "assistant")),
    "DATA-018": ("x.jsonl", "sft", turns({"role": "user", "content": None}) + b"\n" + turns({"role": "user",
                                                                                             "content": 5})),
    "DATA-020": ("x.jsonl", "preference", b'{"prompt":"a","chosen":"b"}'),
    "DATA-021": ("x.jsonl", "preference", b'{"prompt":"a","chosen":"b","rejected":"b"}'),
    "DATA-022": ("x.jsonl", "preference", b'{"prompt":"a","responses":[]}'),
    "DATA-025": ("x.jsonl", "pretrain", b'{"doc_id":1}'),
    "DATA-026": ("x.txt", "pretrain", b"\x01\x02"),
    "DATA-027": ("x.jsonl", "sft", json.dumps(LORA).encode()),
    "DATA-028": ("x.json", "", b"{}"),
    "DATA-029": ("x.json", "", b"[{},]"),
    "DATA-031": ("x.csv", "", b"q,a\nx,y\n"),
    "DATA-036": ("x.csv", "sft", b"q;a\nx;y\n"),
    "DATA-038": ("x.parquet", "", b"PAR1PAR1"),
    "DATA-039": ("x.parquet", "", footer_past_the_file),
    "DATA-041": ("x.xlsx", "", lambda: workbook(["question"], ["q"], parts={"xl/sharedStrings.xml": BOMB})),
    "DATA-042": ("x.xlsm", "", lambda: workbook(["question"], ["q"])),
    "FILE-032": ("data.jsonl", "", b"\x89PNG\r\n\x1a\n\0\0"),
}  # fmt: skip


def upload(scene: Scene, name: str, purpose: str, content: bytes, **fields: Any) -> Any:
    """A new data set from one file."""
    form = {"name": "bad", "file": SimpleUploadedFile(name, content), **fields}
    return scene.client.post(URL, {**form, **({"purpose": purpose} if purpose else {})}, "multipart", **ENGLISH)


def refused(case_id: str, name: str, purpose: str, content: bytes | Callable[[], bytes]) -> Any:
    """Sends a file that is refused."""
    fields = {"mapping": json.dumps({"question": "q1"})} if case_id == "DATA-031" else {}

    def send(scene: Scene) -> Any:
        return upload(scene, name, purpose, content() if callable(content) else content, **fields)

    return send


for case_id, (name, purpose, content) in REFUSED.items():
    case(case_id)(refused(case_id, name, purpose, content))


def taken_literally(name: str, content: bytes) -> Any:
    """Sends a file that is stored as it is, and looks at it."""

    def send(scene: Scene) -> Any:
        made = upload(scene, name, "", content)
        version = made.json()["newest_version"]["id"]
        assert content_of(scene.client.get(f"/api/v1/dataset-versions/{version}/content")) == content
        rows = scene.client.get(f"/api/v1/dataset-versions/{version}/rows").json()["items"]
        assert rows == [{"question": '=HYPERLINK("x")', "answer": "答"}] * 2
        return made

    return send


TWICE = '{"question": "=HYPERLINK(\\"x\\")", "answer": "答"}\r\n' * 2
case("DATA-006")(taken_literally("x.jsonl", TWICE.encode("utf-8-sig")))
case("DATA-037")(taken_literally("x.csv", ("question,answer\n" + '"=HYPERLINK(""x"")",答\n' * 2).encode()))


@case("DATA-044")
def no_row_for_training(scene: Scene) -> Any:
    """A split whose train share is too small for one row."""
    versions = scene.client.get(URL).json()["items"]
    newest = scene.client.get(f"{URL}/{versions[0]['id']}").json()["newest_version"]["id"]
    return scene.post(f"/api/v1/dataset-versions/{newest}/split", {"splits": {"train": 0.01, "test": 0.99}})


@case("DATA-045")
def only_long_rows(scene: Scene) -> Any:
    """What the recipe says when no row is short enough."""
    with tempfile.TemporaryDirectory() as place:
        write_tiny_tokenizer(Path(place), None)
        rows = Path(place) / "train.jsonl"
        rows.write_text(json.dumps(ROW | {"question": "how " * 50}) + "\n")
        with pytest.raises(ProgramError) as refusal:
            read_samples(rows, Renderer.from_folder(place), LengthPolicy(8, "drop"), Reporter(Path(place)))
    return Later(refusal.value.code, refusal.value.message)
