"""What lies in a run's work folder before its program starts."""

from __future__ import annotations

import os

import pytest

from runner.contract.run_spec import WorkItem
from runner.executors.base import LaunchRefused
from runner.worker import layout
from runner.worker.layout import lay_out

TENANT = 7


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    (folder / "configs").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)\n")
    (folder / "configs" / "a.json").write_text("{}")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    return folder


def test_code_is_copied_so_that_the_program_may_change_it(tmp_path, code):
    work = tmp_path / "work"
    lay_out(work, [WorkItem("code", copy_of=str(code))], TENANT)
    (work / "code" / "train.py").write_text("changed")
    assert (code / "train.py").read_text() == "print(1)\n"
    assert (work / "code" / "configs" / "a.json").read_text() == "{}"
    assert os.access(work / "code" / "run.sh", os.X_OK)
    assert not (work / "code" / "train.py").stat().st_mode & 0o111


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_all_of_it_belongs_to_the_tenants_programs(tmp_path, code):
    work = tmp_path / "work"
    lay_out(work, [WorkItem("code", copy_of=str(code)), WorkItem("config.json", text="{}")], TENANT)
    owners = {path.lstat().st_uid for path in work.rglob("*")}
    assert owners == {200_000 + TENANT}


def test_texts_links_and_empty_folders_are_laid_out(tmp_path, code):
    work = tmp_path / "work"
    items = [
        WorkItem("config.json", text='{"值": 1}'),
        WorkItem("data/train/rows.jsonl", link_to=str(code / "train.py")),
        WorkItem("data/test"),
    ]
    lay_out(work, items, TENANT)
    assert (work / "config.json").read_text(encoding="utf-8") == '{"值": 1}'
    assert (work / "data/train/rows.jsonl").readlink() == code / "train.py"
    assert (work / "data/test").is_dir()


def test_links_and_pipes_of_a_code_folder_stay_behind(tmp_path, code):
    (code / "secret").symlink_to("/etc/passwd")
    (code / "etc").symlink_to("/etc")
    os.mkfifo(code / "pipe")
    work = tmp_path / "work"
    lay_out(work, [WorkItem("code", copy_of=str(code))], TENANT)
    assert sorted(path.name for path in (work / "code").iterdir()) == ["configs", "run.sh", "train.py"]


def test_what_a_crash_left_is_made_anew(tmp_path, code):
    work = tmp_path / "work"
    (work / "code").mkdir(parents=True)
    (work / "code" / "half.py").write_text("")
    lay_out(work, [WorkItem("code", copy_of=str(code))], TENANT)
    assert not (work / "code" / "half.py").exists()


def test_a_folder_that_is_gone_or_too_large_is_refused_in_words(tmp_path, code, monkeypatch):
    with pytest.raises(LaunchRefused, match="does not exist any more"):
        lay_out(tmp_path / "work", [WorkItem("code", copy_of=str(tmp_path / "gone"))], TENANT)
    monkeypatch.setattr(layout, "MAX_COPIED_FILES", 2)
    with pytest.raises(LaunchRefused, match="more than 2 files"):
        lay_out(tmp_path / "work", [WorkItem("code", copy_of=str(code))], TENANT)
