"""Data sets through the services: who may, what lies on the disk, what is charged, what refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from pytest_django import DjangoAssertNumQueries, Settings

from clavier.accounts.models import Tenant
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, InvalidFields, NotFound, StorageFull
from clavier.files.models import StorageUsage
from clavier.files.queries import storage_usage
from clavier.files.storage import DiskChanges
from datasets_app import queries, services
from datasets_app.models import Dataset, DatasetVersion
from datasets_app.preview import read_rows
from finetune_app.models import FineTuneTask
from tests.conftest import Spool, left_behind

pytestmark = pytest.mark.django_db

QUESTIONS = "".join(f'{{"question": "q{n}", "answer": "a{n}"}}\n' for n in range(10)).encode()


def put(
    actor: Actor, spooled: Spool, content: bytes = QUESTIONS, file_name: str = "qa.jsonl", name: str = "qa"
) -> DatasetVersion:
    return services.create_dataset_with_file(actor=actor, name=name, upload=spooled(content), file_name=file_name)


def test_a_file_becomes_a_described_version(alice: Actor, home: Path, spooled: Spool) -> None:
    version = put(alice, spooled)
    folder = home / "datasets" / str(alice.tenant_id) / str(version.pk)
    assert (version.number, version.format, version.file_name, version.kind) == (
        1,
        "jsonl",
        "qa.jsonl",
        "question_answer",
    )
    assert (version.num_samples, version.size_bytes) == (10, len(QUESTIONS))
    assert version.sha256 == hashlib.sha256(QUESTIONS).hexdigest()
    assert version.fields[0] == {"name": "question", "type": "string", "non_null": 10}
    assert version.findings == {"errors": 0, "warnings": 0, "counts": {}, "items": []}
    assert sorted(path.name for path in folder.iterdir()) == ["original.jsonl", "rows.idx", "rows.jsonl"]
    assert services.rows_path(version).samefile(services.original_path(version))
    assert services.original_path(version).read_bytes() == QUESTIONS
    assert len(left_behind(home)) == 3
    usage = storage_usage(alice)
    assert (usage["bytes_used"], usage["inodes_used"]) == (len(QUESTIONS) + 80, 3)


def test_programs_of_the_tenant_may_read_the_rows(alice: Actor, spooled: Spool) -> None:
    path = services.rows_path(put(alice, spooled))
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750
    if os.geteuid() == 0:
        number = Tenant.objects.get(pk=alice.tenant_id).number
        assert {part.stat().st_gid for part in (path, path.parent, path.parent.parent)} == {200_000 + number}
        assert path.stat().st_uid == 0


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("a.json", json.dumps([{"question": f"q{n}", "answer": f"a{n}"} for n in range(10)]).encode()),
        ("a.csv", b"question,answer\n" + b"".join(b"q%d,a%d\n" % (n, n) for n in range(10))),
        ("A.JSONL", b"\xef\xbb\xbf" + QUESTIONS.replace(b"\n", b"\r\n")),
    ],
)
def test_rows_are_the_same_whatever_the_format(file_name: str, content: bytes, alice: Actor, spooled: Spool) -> None:
    version = put(alice, spooled, content, file_name)
    expected = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(10)]
    assert read_rows(version, 0, 500) == expected
    assert read_rows(version, 7, 2) == expected[7:9]
    assert read_rows(version, 9, 5) == expected[9:]
    assert read_rows(version, 10, 1) == []
    assert services.original_path(version).read_bytes() == content


def test_a_preview_says_what_may_be_asked(alice: Actor, spooled: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    version = put(alice, spooled)
    for start, count in ((-1, 1), (0, 0), (0, 501)):
        with pytest.raises(Invalid) as refused:
            read_rows(version, start, count)
        assert refused.value.code == "out_of_range"
    monkeypatch.setattr("datasets_app.preview.MAX_BYTES_AT_ONCE", 100)
    assert len(read_rows(version, 0, 10)) == 2
    monkeypatch.setattr("datasets_app.preview.MAX_BYTES_AT_ONCE", 1)
    assert len(read_rows(version, 0, 10)) == 1
    services.rows_path(version).unlink()
    with pytest.raises(NotFound):
        read_rows(version, 0, 1)


@pytest.mark.parametrize(
    ("content", "file_name", "code", "part"),
    [
        (b'{"text": "a"}\n{"text": }\n', "x.jsonl", "bad_row", "line 2, column 10"),
        (b"", "x.txt", "empty_dataset", "0 rows"),
        (b"{}", "x.json", "wrong_type", "array"),
        (b"PAR1PAR1", "x.parquet", "corrupt_file", "Parquet"),
        (
            b'{"question": "q", "answer": "a", "rank": 0, "target_modules": ["q"]}\n',
            "x.jsonl",
            "bad_row",
            "line 1: 'rank'",
        ),
        (b"x", "x.xlsm", "not_a_choice", ".xlsm"),
        (b"x", "x", "not_a_choice", ".jsonl"),
        (b"x", "../x.txt", "bad_name", "file_name"),
        (b"x", "", "required", "file_name"),
    ],
)
def test_a_refused_file_leaves_nothing(
    content: bytes, file_name: str, code: str, part: str, alice: Actor, home: Path, spooled: Spool
) -> None:
    with pytest.raises(Invalid) as refused:
        put(alice, spooled, content, file_name)
    assert refused.value.code == code
    assert part in refused.value.message
    assert left_behind(home) == []
    assert (Dataset.objects.count(), DatasetVersion.objects.count(), StorageUsage.objects.count()) == (0, 0, 0)


def test_a_refusal_lists_the_first_errors_with_lines_and_samples(alice: Actor, spooled: Spool) -> None:
    with pytest.raises(InvalidFields) as refused:
        put(alice, spooled, b'{"question": "q", "answer": 1}\n' * 1000)
    problems = refused.value.problems
    assert len(problems) == 21
    assert problems[0].message.startswith("line 1: 'answer' must be a text, it is a number. Found: {")
    assert "1,000 errors" in problems[-1].message
    assert {(problem.field, problem.code) for problem in problems} == {("file", "bad_row")}


def test_a_rank_that_lora_would_refuse_is_warned_of_where_it_may_mean_something_else(
    alice: Actor, spooled: Spool
) -> None:
    version = put(
        alice, spooled, b'{"question": "q", "answer": "a", "rank": 3}\n{"question": "r", "answer": "a", "rank": 0}\n'
    )
    (found,) = version.findings["items"]
    assert (found["line"], found["is_error"]) == (2, False)
    assert found["message"] == "line 2: for LoRA 'rank' must be a whole number from 1 on, it is '0'."


def test_a_purpose_demands_its_columns(alice: Actor, home: Path, spooled: Spool) -> None:
    dataset = services.create_dataset(actor=alice, name="d")
    with pytest.raises(InvalidFields, match="pretrain data needs the keys text"):
        services.upload_version(
            actor=alice, dataset=dataset, upload=spooled(QUESTIONS), file_name="x.jsonl", purpose="pretrain"
        )
    with pytest.raises(Invalid, match="none of sft"):
        services.upload_version(actor=alice, dataset=dataset, upload=spooled(b"x"), file_name="x.txt", purpose="magic")
    version = services.upload_version(
        actor=alice, dataset=dataset, upload=spooled(QUESTIONS), file_name="x.jsonl", purpose="sft"
    )
    assert version.kind == "question_answer"
    assert len(left_behind(home)) == 3


def test_versions_count_up_and_are_never_numbered_twice(alice: Actor, bob: Actor, spooled: Spool) -> None:
    first = put(alice, spooled)
    second = services.upload_version(
        actor=alice, dataset=first.dataset, upload=SimpleUploadedFile("x", b"one\ntwo\n"), file_name="x.txt"
    )
    assert (second.number, second.kind, str(second)) == (2, "text", "qa v2")
    assert [version.number for version in queries.versions_of(first.dataset)] == [2, 1]
    found = queries.search(bob).get()
    assert (found.num_versions, found.newest_number) == (2, 2)  # type: ignore[attr-defined]


def test_charlie_sees_and_touches_nothing_of_alice(alice: Actor, charlie: Actor, home: Path, spooled: Spool) -> None:
    version = put(alice, spooled)
    before = left_behind(home)
    for call in (
        lambda: queries.access_dataset(charlie, version.dataset_id),
        lambda: queries.access_dataset_version(charlie, version.pk),
        lambda: services.upload_version(
            actor=charlie, dataset=version.dataset, upload=spooled(b"x"), file_name="x.txt"
        ),
        lambda: services.update_dataset(actor=charlie, dataset=version.dataset, name="mine"),
        lambda: services.delete_version(actor=charlie, version=version),
        lambda: services.delete_dataset(actor=charlie, dataset=version.dataset),
    ):
        with pytest.raises(NotFound):
            call()
    assert not queries.search(charlie, "qa").exists()
    assert queries.statistics(charlie)["datasets"] == 0
    assert left_behind(home) == before
    put(charlie, spooled)


def test_bob_reads_what_alice_made_and_changes_only_his_own(alice: Actor, bob: Actor, spooled: Spool) -> None:
    version = put(alice, spooled)
    of_bob = put(bob, spooled, name="bobs")
    assert queries.access_dataset_version(bob, version.pk) == version
    for call in (
        lambda: services.upload_version(actor=bob, dataset=version.dataset, upload=spooled(b"x"), file_name="x.txt"),
        lambda: services.update_dataset(actor=bob, dataset=version.dataset, name="mine"),
        lambda: services.delete_version(actor=bob, version=version),
        lambda: services.delete_dataset(actor=bob, dataset=version.dataset),
        lambda: put(dataclasses.replace(bob, role="viewer"), spooled, name="viewers"),
    ):
        with pytest.raises(Forbidden):
            call()
    services.delete_dataset(actor=alice, dataset=of_bob.dataset)
    assert storage_usage(bob)["bytes_used"] == 0


def test_names_are_unique_in_a_tenant_and_visible(alice: Actor, home: Path, spooled: Spool) -> None:
    put(alice, spooled, name="  \u00e9t\u00e9 ")
    before = left_behind(home)
    for name in ("\u00e9t\u00e9", "e\u0301te\u0301"):
        with pytest.raises(Conflict) as refused:
            put(alice, spooled, name=name)
        assert (refused.value.code, refused.value.field) == ("already_exists", "name")
        with pytest.raises(Conflict):
            services.create_dataset(actor=alice, name=name)
    bad = dict.fromkeys(["a/b", "a\u202eb", "a\u200db", "a\nb", "a\0", "x" * 101], "bad_name")
    for name, code in {"": "required", "  ": "required", **bad}.items():
        with pytest.raises(Invalid) as invalid:
            put(alice, spooled, name=name)
        assert (invalid.value.code, invalid.value.field) == (code, "name")
    assert left_behind(home) == before


def test_a_data_set_is_changed_and_found(alice: Actor) -> None:
    dataset = services.create_dataset(
        actor=alice,
        name="客服问答",
        description="<img src=x onerror=alert(1)> 100%",
        tags=["电信", "faq", "faq"],
        languages=["zh"],
    )
    assert dataset.tags == ["电信", "faq"]
    for text in ("客服", "ONERROR", "电信", "FAQ", "0%"):
        assert queries.search(alice, text).get() == dataset
    assert not queries.search(alice, "100_").exists()
    changed = services.update_dataset(actor=alice, dataset=dataset, name="new", task="chat", license="MIT")
    assert (changed.name, changed.task, changed.description) == ("new", "chat", dataset.description)
    services.create_dataset(actor=alice, name="other")
    with pytest.raises(Conflict):
        services.update_dataset(actor=alice, dataset=dataset, name="other")
    with pytest.raises(Invalid, match="can not be set"):
        services.update_dataset(actor=alice, dataset=dataset, tenant_id="x")
    with pytest.raises(Invalid, match="tags"):
        services.update_dataset(actor=alice, dataset=dataset, tags="not a list")


def test_deleting_gives_everything_back(alice: Actor, home: Path, spooled: Spool) -> None:
    version = put(alice, spooled)
    services.upload_version(actor=alice, dataset=version.dataset, upload=spooled(b"one\n"), file_name="x.txt")
    services.delete_version(actor=alice, version=version)
    assert [row.number for row in queries.versions_of(version.dataset)] == [2]
    services.delete_dataset(actor=alice, dataset=version.dataset)
    assert left_behind(home) == []
    usage = storage_usage(alice)
    assert (usage["bytes_used"], usage["inodes_used"]) == (0, 0)


def test_what_is_in_use_stays_and_says_by_what(alice: Actor, home: Path, spooled: Spool) -> None:
    version = put(alice, spooled)
    before, usage = left_behind(home), storage_usage(alice)
    task = FineTuneTask.objects.create(
        tenant_id=alice.tenant_id,
        created_by_id=alice.user_id,
        name="tuner",
        recipe="sft",
        method="lora",
        train_dataset=version,
        hyperparameters={},
        resources={},
        output_model_name="tuned",
    )
    with pytest.raises(Conflict, match=r"version 1 of data set 'qa' is used by .*'tuner'") as refused:
        services.delete_version(actor=alice, version=version)
    assert refused.value.code == "in_use"
    with pytest.raises(Conflict, match=r"data set 'qa' is used by .*'tuner'"):
        services.delete_dataset(actor=alice, dataset=version.dataset)
    assert left_behind(home) == before
    assert storage_usage(alice) == usage
    task.delete()
    services.delete_dataset(actor=alice, dataset=version.dataset)
    assert left_behind(home) == []


def test_storage_of_the_user_is_charged_and_refuses(
    alice: Actor, home: Path, spooled: Spool, settings: Settings
) -> None:
    StorageUsage.objects.create(tenant_id=alice.tenant_id, user_id=alice.user_id, bytes_limit=100, inodes_limit=100)
    with pytest.raises(StorageFull, match="left") as refused:
        put(alice, spooled)
    assert refused.value.code == "quota_exceeded"
    settings.DISK_RESERVE_MIB = 10**9
    with pytest.raises(StorageFull, match="free") as refused:
        put(alice, spooled)
    assert refused.value.code == "insufficient_storage"
    assert left_behind(home) == []
    assert not Dataset.objects.exists()


def test_a_failed_commit_leaves_nothing(
    alice: Actor, home: Path, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DiskChanges.place

    def place_then_break(self: DiskChanges, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        raise RuntimeError("the database went away")

    monkeypatch.setattr(DiskChanges, "place", place_then_break)
    with pytest.raises(RuntimeError):
        put(alice, spooled)
    assert left_behind(home) == []
    assert not Dataset.objects.exists()


def test_statistics_of_a_tenant(alice: Actor, bob: Actor, spooled: Spool) -> None:
    put(alice, spooled)
    put(bob, spooled, b"one\ntwo\n", "x.txt", name="texts")
    assert queries.statistics(alice) == {
        "datasets": 2, "versions": 2, "num_samples": 12, "size_bytes": len(QUESTIONS) + 8,
        "kinds": {"question_answer": 1, "text": 1},
    }  # fmt: skip


def test_a_list_of_data_sets_takes_one_query(
    alice: Actor, spooled: Spool, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(5):
        put(alice, spooled, name=f"d{number}")
    with django_assert_num_queries(1):
        assert [row.created_by.username for row in queries.search(alice)] == ["alice"] * 5
