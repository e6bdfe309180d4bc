"""What programs wrote is read by byte offset, whole lines at a time, and never through a link."""

from __future__ import annotations

from uuid import uuid4

import pytest

from clavier.runs.outputs import check_manifest, read_json, read_log, read_metrics, run_folder


@pytest.fixture
def run(home):
    run_id = uuid4()
    run_folder(run_id).mkdir(parents=True)
    return run_id


def test_a_follower_gets_every_byte_once_and_only_whole_lines(run):
    log = run_folder(run) / "log.txt"
    assert read_log(run).data == b""
    log.write_bytes("一\n二\nthr".encode())
    first = read_log(run)
    assert first.data.decode() == "一\n二\n"
    with log.open("ab") as stream:
        stream.write(b"ee\nfour")
    second = read_log(run, first.next_offset)
    assert second.data == b"three\n"
    assert read_log(run, second.next_offset).data == b""
    assert read_log(run, second.next_offset, to_end=True).data == b"four"


def test_the_tail_begins_with_a_whole_line(run):
    (run_folder(run) / "log.txt").write_text("first line\nsecond line\nthird line\n")
    assert read_log(run, -15).data == b"third line\n"
    assert read_log(run, -1000).data.startswith(b"first")


def test_a_line_longer_than_the_limit_still_moves_on(run):
    (run_folder(run) / "log.txt").write_text("x" * 100 + "\n")
    chunk = read_log(run, 0, 10)
    assert (len(chunk.data), chunk.next_offset) == (10, 10)


def test_broken_lines_of_metrics_are_passed_over(run):
    (run_folder(run) / "metrics.jsonl").write_text('{"step": 1}\nnot json\n[1]\n{"step": 2}\n{"half')
    events, offset = read_metrics(run)
    assert [event["step"] for event in events] == [1, 2]
    assert read_metrics(run, offset) == ([], offset)


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_link_in_the_place_of_a_file_is_never_followed(run, home, name):
    secret = home / "secret"
    secret.write_text('{"secret": 1}\n')
    (run_folder(run) / name).symlink_to(secret)
    assert read_log(run).data == b""
    assert read_metrics(run)[0] == []


def test_neither_a_linked_folder_nor_a_pipe_nor_a_way_out_is_read(run, home):
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "ready.json").write_text("{}")
    (run_folder(run) / "work").symlink_to(home / "elsewhere")
    assert read_json(run, "work/ready.json") is None
    (run_folder(run) / "fifo.json").mkdir()
    assert read_json(run, "fifo.json") is None


def test_a_manifest_that_lists_a_link_is_refused(run, home):
    (home / "weights").write_text("12345")
    output = run_folder(run) / "output"
    output.mkdir()
    (output / "model.safetensors").symlink_to(home / "weights")
    (output / "MANIFEST.json").write_text('{"files": [{"path": "model.safetensors", "size": 5}]}')
    manifest, wrong = check_manifest(run)
    assert manifest is None
    assert "not there" in wrong
