"""Fetching folders of object stores: what a key may be called, and connections that break."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from runner.contract.run_spec import RunSpec
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter
from runner.programs.models import object_storage
from runner.programs.models.object_storage import StoredObject, fetch
from runner.programs.models.stage_folders import objects_of


def listed(*keys: str) -> dict[str, Any]:
    return {key: {"type": "file", "size": 1} for key in keys}


def folder(*inside: str) -> dict[str, Any]:
    return {"location": "bucket/data", "inside": list(inside)}


def test_files_lie_as_their_keys_say_and_markers_of_folders_are_left_out(tmp_path: Path) -> None:
    found = objects_of(listed("bucket/data/train/a", "bucket/data/", "bucket/data/train/"), folder("train"), tmp_path)
    assert [(one.key, one.target) for one in found] == [("bucket/data/train/a", tmp_path / "train" / "a")]


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (["bucket/data/../../../etc/passwd"], "bad_path"),
        (["bucket/data//a"], "bad_path"),
        (["bucket/data/./a"], "bad_path"),
        (["bucket/data"], "bad_path"),
        (["bucket/data/" + "x" * 256], "bad_path"),
        (["bucket/data/a", "bucket/data/a/b"], "bad_layout"),
        (["bucket/data/train/a", "bucket/data/more/b"], "bad_layout"),
        ([], "not_found"),
    ],
)
def test_a_key_that_is_no_path_of_a_file_is_refused(tmp_path: Path, keys: list[str], code: str) -> None:
    inside = ["train"] if "more" in str(keys) else []
    with pytest.raises(ProgramError) as refusal:
        objects_of(listed(*keys), folder(*inside), tmp_path)
    assert refusal.value.code == code


class Breaking:
    """A store of one file whose connection breaks after each byte, so many times."""

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks

    def open(self, key: str, mode: str) -> Any:
        store = self

        class Reader(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if store.breaks:
                    store.breaks -= 1
                    if store.breaks % 2:
                        raise ConnectionResetError("reset by peer")
                    return super().read(1)
                return super().read(size)

        return Reader(b"0123456789")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProgramContext:
    monkeypatch.setattr(object_storage, "FIRST_PAUSE_S", 0)
    spec = RunSpec("fine_tune", "runner.programs.models.stage_folders", {})
    return ProgramContext(tmp_path, spec, Reporter(tmp_path))


def test_a_broken_connection_goes_on_where_it_ended(context: ProgramContext, tmp_path: Path) -> None:
    (tmp_path / "of an earlier start").write_text("abcdefghij")
    fetch(context, [(Breaking(6), StoredObject("bucket/a", 10, tmp_path / "of an earlier start"))])
    assert (tmp_path / "of an earlier start").read_bytes() == b"0123456789"
    assert (tmp_path / "metrics.jsonl").read_text().count('"retried"') == 3


def test_a_store_that_breaks_each_time_is_given_up(context: ProgramContext, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="reset by peer"):
        fetch(context, [(Breaking(1000), StoredObject("bucket/a", 10, tmp_path / "a"))])
    with pytest.raises(OSError, match="10 of 11 bytes"):
        fetch(context, [(Breaking(0), StoredObject("bucket/a", 11, tmp_path / "a"))])
