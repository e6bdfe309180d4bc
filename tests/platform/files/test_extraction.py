"""Unpacking archives among a user's files: all or nothing, within limits, for those who may read the archive."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from clavier.core.actor import Actor
from clavier.core.errors import Conflict, NotFound, QuotaExceeded, StorageFull, Unprocessable
from clavier.files import archives
from clavier.files.extraction import extract_archive
from clavier.files.models import StorageUsage, StoredFile
from clavier.files.services import open_stored_file, upload_file
from tests.cases.archives import member, tar_of, zip_of
from tests.conftest import left_behind

pytestmark = pytest.mark.django_db(transaction=True)
TREE = {"训练/a.txt": b"one", "b.txt": b"two"}


def put(actor: Actor, content: bytes, area: str = "private", name: str = "x") -> StoredFile:
    """An archive among the actor's files."""
    upload = SimpleUploadedFile(name, content)
    return upload_file(actor=actor, area=area, folder="", name=name, upload=upload)


def packed(form: str) -> bytes:
    """The tree as an archive."""
    if form == "zip":
        return zip_of(*TREE.items())
    plain = tar_of(*[(tarfile.TarInfo(name), content) for name, content in TREE.items()])
    return gzip.compress(plain) if form == "tar.gz" else plain


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_every_file_comes_with_its_path_its_bytes_and_is_charged(alice: Actor, home: Path, form: str) -> None:
    archive = put(alice, packed(form))
    before = StorageUsage.objects.get(user_id=alice.user_id)
    made = extract_archive(actor=alice, file=archive, area="private")
    assert {row.path: open_stored_file(actor=alice, file=row).read() for row in made} == TREE
    after = StorageUsage.objects.get(user_id=alice.user_id)
    assert after.bytes_used - before.bytes_used == 6
    assert after.inodes_used - before.inodes_used == 3
    assert not list((home / "files" / ".incoming").iterdir())


def test_bob_unpacks_a_public_archive_of_alice_into_his_own_files_and_charlie_finds_none(
    alice: Actor, bob: Actor, charlie: Actor
) -> None:
    public, private = put(alice, packed("zip"), "public"), put(alice, packed("zip"))
    made = extract_archive(actor=bob, file=public, area="private")
    assert {row.created_by_id for row in made} == {bob.user_id}
    for actor, file in ((bob, private), (charlie, public), (charlie, private)):
        with pytest.raises(NotFound):
            extract_archive(actor=actor, file=file, area="private")


def test_a_file_that_is_there_stays_unless_overwriting_is_asked_for(alice: Actor, home: Path) -> None:
    archive = put(alice, packed("zip"))
    there = put(alice, b"old", name="b.txt")
    before = left_behind(home)
    with pytest.raises(Conflict) as refused:
        extract_archive(actor=alice, file=archive, area="private")
    assert refused.value.code == "already_exists"
    assert left_behind(home) == before
    assert open_stored_file(actor=alice, file=there).read() == b"old"
    extract_archive(actor=alice, file=archive, area="private", overwrite=True)
    assert open_stored_file(actor=alice, file=there).read() == b"two"


def test_what_does_not_fit_the_quota_leaves_nothing(alice: Actor, home: Path) -> None:
    archive = put(alice, packed("zip"))
    StorageUsage.objects.filter(user_id=alice.user_id).update(bytes_limit=archive.size_bytes + 5)
    before = left_behind(home)
    with pytest.raises((QuotaExceeded, StorageFull)):
        extract_archive(actor=alice, file=archive, area="private")
    assert left_behind(home) == before
    assert StoredFile.objects.count() == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (lambda: zip_of(("A.txt", b""), ("a.TXT", b"")), "duplicate_entry"),
        (lambda: zip_of(("/etc/x", b"")), "path_outside_root"),
        (lambda: zip_of(("a/" * 40 + "x", b"")), "bad_name"),
        (lambda: tar_of(*[member(f"f{number}") for number in range(10_001)]), "too_many_entries"),
        (lambda: tar_of(member("a", tarfile.LNKTYPE, "b")), "link_not_allowed"),
        (lambda: gzip.compress(tar_of((tarfile.TarInfo("bomb"), bytes(2**27)))), "unpacked_too_large"),
        (lambda: tar_of(member("only", tarfile.DIRTYPE)), "empty_archive"),
        (lambda: gzip.compress(b"no tar"), "not_an_archive"),
    ],
    ids=["case", "absolute", "deep", "many", "hard-link", "ratio", "empty", "gzip-of-no-tar"],
)
def test_what_is_not_allowed_is_refused_by_its_word(
    alice: Actor, home: Path, monkeypatch: pytest.MonkeyPatch, content: Any, code: str
) -> None:
    monkeypatch.setattr(archives, "MAX_RATIO", 100)
    archive = put(alice, content())
    before = left_behind(home)
    with pytest.raises(Unprocessable) as refused:
        extract_archive(actor=alice, file=archive, area="private")
    assert refused.value.code == code
    assert left_behind(home) == before
