"""Versions made from versions: cleaned, split, compared; and who may do it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, InvalidFields, NotFound
from clavier.files.models import StorageUsage
from datasets_app import derive
from datasets_app.derive import compare_versions, derive_version, read_all, split_version
from datasets_app.models import DatasetVersion
from datasets_app.services import create_dataset_with_file
from datasets_app.steps import split_of_rows

Put = Callable[[list[dict[str, Any]]], DatasetVersion]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def put(alice: Actor, spooled: Any) -> Put:
    """A data set of Alice with these rows."""

    def make(rows: list[dict[str, Any]]) -> DatasetVersion:
        upload = spooled(lines(rows), "faq.jsonl")
        return create_dataset_with_file(actor=alice, name="faq", upload=upload, file_name="faq.jsonl")

    return make


def pair(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"question": question, "answer": answer}


def test_repeated_rows_go_and_the_version_says_how_many(put: Put, alice: Actor) -> None:
    version = put([pair("What is RQ?"), pair("what  is rq?"), pair("What is Redis?"), pair("What is RQ?")])
    made = derive_version(actor=alice, version=version, steps=[{"step": "deduplicate"}])
    assert [row["question"] for row in read_all(made)] == ["What is RQ?", "What is Redis?"]
    assert (made.number, made.parent, made.changes["removed"]) == (2, version, {"deduplicate": 2})
    assert made.steps == [{"step": "deduplicate"}]
    assert version.num_samples == 4


def test_rows_that_are_almost_the_same_go_too_when_asked(put: Put, alice: Actor) -> None:
    long = "How do I reset the password of my account on the portal of the company when I forgot it yesterday"
    version = put([pair(long), pair(long + "?"), pair("A question about something else entirely, namely invoices")])
    made = derive_version(actor=alice, version=version, steps=[{"step": "deduplicate", "near": True}])
    assert made.num_samples == 2
    assert made.changes["removed"] == {"deduplicate_near": 1}


def test_personal_data_is_replaced_and_counted_and_look_alikes_stay(put: Put, alice: Actor) -> None:
    secret = "Mail bob@example.com or call 13812345678, card 4111111111111111, id 11010519491231002X."
    harmless = "Order 4111111111111112 of 20260102030405, id 110105194912310021, v1.2.3@home"
    key = "sk-" + "a1B2" * 8
    version = put([pair("who?", secret), pair("what?", harmless), {"question": "k", "answer": [key]} | {"answer": key}])
    assert version.statistics["personal_data"] == {
        "email": 1, "phone": 1, "bank_card": 1, "identity_number": 1, "api_key": 1
    }  # fmt: skip
    made = derive_version(actor=alice, version=version, steps=[{"step": "deidentify"}])
    rows = list(read_all(made))
    assert rows[0]["answer"] == "Mail [EMAIL] or call [PHONE], card [BANK_CARD], id [IDENTITY_NUMBER]."
    assert rows[1]["answer"] == harmless
    assert rows[2]["answer"] == "[API_KEY]"
    assert made.changes["changed"] == {"deidentify": 2}
    assert "personal_data" not in made.statistics


def test_personal_data_in_numbers_and_names_is_replaced_too(put: Put, alice: Actor) -> None:
    version = put(
        [
            pair("who?") | {"phone": 13812345678, "cards": [4111111111111111, 7, True, None], "at": 13812345678.0},
            pair("what?") | {"of": {"bob@example.com": 1, "eve@example.com": {"13812345678": 2}, "[EMAIL] 2": 3}},
        ]
    )
    assert version.statistics["personal_data"] == {"phone": 3, "bank_card": 1, "email": 2}
    made = derive_version(actor=alice, version=version, steps=[{"step": "deidentify"}])
    rows = list(read_all(made))
    assert rows[0] == pair("who?") | {"phone": "[PHONE]", "cards": ["[BANK_CARD]", 7, True, None], "at": "[PHONE]"}
    assert rows[1]["of"] == {"[EMAIL]": 1, "[EMAIL] 3": {"[PHONE]": 2}, "[EMAIL] 2": 3}
    assert made.changes["personal_data"] == version.statistics["personal_data"]
    assert "personal_data" not in made.statistics


def test_only_the_kinds_that_were_named_are_replaced(put: Put, alice: Actor) -> None:
    version = put([pair("who?", "bob@example.com 13812345678")])
    made = derive_version(actor=alice, version=version, steps=[{"step": "deidentify", "kinds": ["phone"]}])
    assert next(read_all(made))["answer"] == "bob@example.com [PHONE]"


def test_control_characters_are_taken_out_of_every_text(put: Put, alice: Actor) -> None:
    version = put([pair("who\u0007?", "a\tb\u001bc\nd"), pair("what?", "plain")])
    assert version.findings["counts"] == {"control_character": 1}
    made = derive_version(actor=alice, version=version, steps=[{"step": "clean"}])
    assert next(read_all(made)) == pair("who?", "a\tbc\nd")
    assert (made.changes["changed"], made.num_samples) == ({"clean": 1}, 2)
    with pytest.raises(Conflict, match="change no row"):
        derive_version(actor=alice, version=made, steps=[{"step": "clean"}])


def test_steps_work_one_after_the_other(put: Put, alice: Actor) -> None:
    version = put([{"q": f"question {number}", "a": "x" * number} for number in range(20)])
    steps = [
        {"step": "rename", "mapping": {"question": "q", "answer": "a"}},
        {"step": "drop_long", "max_characters": 50},
        {"step": "select", "first": 2, "count": 3, "every": 2},
    ]
    made = derive_version(actor=alice, version=version, steps=steps)
    assert made.kind == "question_answer"
    assert [row["question"] for row in read_all(made)] == ["question 2", "question 4", "question 6"]


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([], "out_of_range"),
        ([{"step": "polish"}], "not_a_choice"),
        ([{"step": "deduplicate", "deep": True}], "unknown_field"),
        ([{"step": "deduplicate", "threshold": 2}], "out_of_range"),
        ([{"step": "deidentify", "kinds": ["shoe size"]}], "not_a_choice"),
        ([{"step": "drop_long"}], "out_of_range"),
        ([{"step": "rename"}], "required"),
    ],
)
def test_a_bad_step_is_named_and_nothing_is_made(
    put: Put, alice: Actor, steps: list[dict[str, Any]], code: str
) -> None:
    version = put([pair("a")])
    with pytest.raises(Invalid) as refused:
        derive_version(actor=alice, version=version, steps=steps)
    assert (refused.value.code, refused.value.field) == (code, "steps")
    assert DatasetVersion.objects.count() == 1


def test_steps_that_change_nothing_make_no_version(put: Put, alice: Actor) -> None:
    version = put([pair("a"), pair("b")])
    with pytest.raises(Conflict, match="change no row"):
        derive_version(actor=alice, version=version, steps=[{"step": "deduplicate"}])
    assert DatasetVersion.objects.count() == 1


def test_steps_that_leave_no_row_are_refused(put: Put, alice: Actor) -> None:
    version = put([pair("a"), pair("b")])
    with pytest.raises(InvalidFields, match="0 rows"):
        derive_version(actor=alice, version=version, steps=[{"step": "select", "first": 100}])


def test_a_split_gives_every_row_to_one_version_and_keeps_equal_rows_together(put: Put, alice: Actor) -> None:
    version = put([pair(f"question {number % 80}") for number in range(100)])
    made = split_version(actor=alice, version=version, splits={"train": 0.8, "validation": 0.1, "test": 0.1})
    sizes = {name: part.num_samples for name, part in made.items()}
    assert sum(sizes.values()) == 100
    assert abs(sizes["train"] - 80) <= 2
    texts = {name: {row["question"] for row in read_all(part)} for name, part in made.items()}
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]
    assert {part.split for part in made.values()} == {"train", "validation", "test"}
    assert made["train"].file_name == "faq.train.jsonl"


def test_the_same_seed_gives_the_same_split_and_another_seed_another(put: Put, alice: Actor) -> None:
    version = put([pair(f"question {number}") for number in range(60)])
    shares = {"train": 0.5, "test": 0.5}
    first, again = (split_version(actor=alice, version=version, splits=shares, seed=1) for _ in range(2))
    other = split_version(actor=alice, version=version, splits=shares, seed=2)
    assert first["train"].sha256 == again["train"].sha256
    assert first["train"].sha256 != other["train"].sha256
    assert first["train"].num_samples == 30


@pytest.mark.parametrize(
    ("splits", "code"),
    [
        ({"test": 1.0}, "required"),
        ({"train": 0.5, "dev": 0.5}, "unknown_field"),
        ({"train": 0.5, "test": 0.4}, "bad_value"),
        ({"train": "all"}, "out_of_range"),
        ({"train": 0.999, "test": 0.001}, "empty_dataset"),
    ],
)
def test_bad_shares_are_refused_in_words(put: Put, alice: Actor, splits: dict[str, Any], code: str) -> None:
    version = put([pair("a"), pair("b"), pair("c")])
    with pytest.raises(Invalid) as refused:
        split_version(actor=alice, version=version, splits=splits)
    assert refused.value.code == code
    assert DatasetVersion.objects.count() == 1


def test_a_diff_counts_and_shows_what_one_side_lacks(put: Put, alice: Actor) -> None:
    version = put([pair("a"), pair("a"), pair("b"), pair("call 13812345678")])
    steps = [{"step": "deduplicate"}, {"step": "deidentify"}]
    made = derive_version(actor=alice, version=version, steps=steps)
    diff = compare_versions(actor=alice, old=version, new=made)
    assert (diff["added"], diff["removed"], diff["common"]) == (1, 2, 2)
    assert diff["added_samples"] == [pair("call [PHONE]")]
    assert [row["question"] for row in diff["removed_samples"]] == ["a", "call 13812345678"]


def test_more_rows_than_memory_is_set_aside_for_are_refused_with_what_to_do(
    put: Put, alice: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = put([pair("a"), pair("a"), pair("b")])
    monkeypatch.setattr(derive, "MAX_ROWS_IN_MEMORY", 2)
    calls: list[tuple[str, str, Callable[[], Any]]] = [
        ("steps", "near", lambda: derive_version(actor=alice, version=version, steps=[{"step": "deduplicate"}])),
        ("version", "upload each part", lambda: split_version(actor=alice, version=version, splits={"train": 1.0})),
        ("against", "overlap", lambda: compare_versions(actor=alice, new=version)),
    ]
    for field, advice, call in calls:
        with pytest.raises(Invalid, match=f"faq v1 has 3 rows, 0.0 MiB; up to 2 rows .*{advice}") as refused:
            call()
        assert (refused.value.code, refused.value.field) == ("too_large", field)
    made = derive_version(actor=alice, version=version, steps=[{"step": "deduplicate", "near": True}])
    with pytest.raises(Invalid, match="faq v2 and faq v1 have 5 rows"):
        compare_versions(actor=alice, new=made)


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_a_split_puts_each_group_of_equal_rows_where_the_first_of_it_still_fits(seed: int) -> None:
    keys = [number * number % 97 for number in range(500)]
    shares = {"train": 0.7, "validation": 0.2, "test": 0.1}
    groups = Counter(keys)
    order = sorted(groups, key=lambda key: hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest())
    placed, done = {}, 0
    for key in order:
        placed[key] = sum(done >= bound for bound in (350, 450))
        done += groups[key]
    assert split_of_rows(keys, shares, seed).tolist() == [placed[key] for key in keys]


def test_a_derived_version_is_charged_like_an_upload(put: Put, alice: Actor) -> None:
    version = put([pair("a"), pair("a"), pair("b")])
    before = StorageUsage.objects.get(user_id=alice.user_id).bytes_used
    made = derive_version(actor=alice, version=version, steps=[{"step": "deduplicate"}])
    assert StorageUsage.objects.get(user_id=alice.user_id).bytes_used == before + made.stored_bytes


def test_charlie_can_not_derive_split_or_compare_alices_versions_nor_bob_change_them(
    put: Put, alice: Actor, bob: Actor, charlie: Actor
) -> None:
    version = put([pair("a"), pair("a")])
    for actor, error in ((charlie, NotFound), (bob, Forbidden)):
        with pytest.raises(error):
            derive_version(actor=actor, version=version, steps=[{"step": "deduplicate"}])
        with pytest.raises(error):
            split_version(actor=actor, version=version, splits={"train": 1.0})
    with pytest.raises(NotFound):
        compare_versions(actor=charlie, old=version, new=version)
    assert compare_versions(actor=bob, old=version, new=version)["common"] == 2
