"""Files through the services: who sees what, what lies on the disk, what is charged."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import DatabaseError
from pytest_django import Settings

from clavier.accounts.models import Tenant, User
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, DomainError, Forbidden, Invalid, NotFound, StorageFull, TooLarge
from clavier.files import services
from clavier.files.access import access_file
from clavier.files.models import StorageUsage, StoredFile
from clavier.files.queries import list_folder, storage_usage
from clavier.files.storage import DiskChanges
from tests.conftest import Spool, left_behind

pytestmark = pytest.mark.django_db


def put(actor: Actor, spooled: Spool, name: str = "x.txt", content: bytes = b"hello", **more: object) -> StoredFile:
    options: dict[str, object] = {"area": "private", "folder": "", **more}
    return services.upload_file(actor=actor, name=name, upload=spooled(content), **options)  # type: ignore[arg-type]


def on_disk(file: StoredFile, home: Path) -> Path:
    return home / "files" / str(file.tenant_id) / str(file.created_by_id) / file.area / file.path


def used(actor: Actor) -> tuple[int, int]:
    facts = storage_usage(actor)
    return facts["bytes_used"], facts["inodes_used"]


def test_an_upload_is_taken_over_by_rename_and_described(alice: Actor, home: Path, spooled: Spool) -> None:
    upload = spooled(b"hello")
    inode = os.stat(upload.temporary_file_path()).st_ino
    file = services.upload_file(actor=alice, area="private", folder="/", name="x.txt", upload=upload)
    path = on_disk(file, home)
    assert path.read_bytes() == b"hello"
    assert path.stat().st_ino == inode
    assert (file.size_bytes, file.sha256) == (5, hashlib.sha256(b"hello").hexdigest())
    assert used(alice) == (5, 1)
    assert left_behind(home) == [str(path.relative_to(home))]


def test_an_upload_from_memory_is_written_and_leaves_nothing_else(alice: Actor, home: Path) -> None:
    upload = SimpleUploadedFile("x", b"in memory")
    file = services.upload_file(actor=alice, area="public", folder="", name="m.bin", upload=upload)
    assert on_disk(file, home).read_bytes() == b"in memory"
    assert len(left_behind(home)) == 1


def test_programs_of_the_tenant_may_read_and_not_change(alice: Actor, home: Path, spooled: Spool) -> None:
    services.create_folder(actor=alice, area="private", folder="", name="d")
    path = on_disk(put(alice, spooled, folder="d"), home)
    number = Tenant.objects.get(pk=alice.tenant_id).number
    for folder in (path.parent, path.parent.parent, path.parents[2], path.parents[3]):
        assert folder.stat().st_mode & 0o777 == 0o750
    assert path.stat().st_mode & 0o777 == 0o640
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (0, 200_000 + number)
    assert (home / "files").stat().st_mode & 0o777 == 0o711


def test_private_files_are_for_their_owner_alone(alice: Actor, bob: Actor, charlie: Actor, spooled: Spool) -> None:
    private, public = put(alice, spooled, "a"), put(alice, spooled, "b", area="public")
    assert access_file(bob, public.pk) == public
    with services.open_stored_file(actor=bob, file=public) as stream:
        assert stream.read() == b"hello"
    for actor, file in ((bob, private), (charlie, private), (charlie, public)):
        with pytest.raises(NotFound):
            access_file(actor, file.pk)
        with pytest.raises(NotFound):
            services.open_stored_file(actor=actor, file=file)
        with pytest.raises(NotFound):
            services.delete_file(actor=actor, file=file)
        with pytest.raises(NotFound):
            services.move_file(actor=actor, file=file, folder="", name="mine")
    assert not list_folder(actor=bob, area="private", owner_id=alice.user_id).exists()
    assert [file.name for file in list_folder(actor=bob, area="public", owner_id=alice.user_id)] == ["b"]
    assert not list_folder(actor=charlie, area="public", owner_id=alice.user_id).exists()


def test_public_files_are_changed_by_owner_and_admins(alice: Actor, bob: Actor, home: Path, spooled: Spool) -> None:
    of_alice, of_bob = put(alice, spooled, area="public"), put(bob, spooled, area="public")
    with pytest.raises(Forbidden):
        services.delete_file(actor=bob, file=of_alice)
    with pytest.raises(Forbidden):
        services.move_file(actor=bob, file=of_alice, folder="", name="y")
    with pytest.raises(Forbidden, match="Only its owner"):
        services.move_file(actor=alice, file=of_bob, folder="", area="private")
    services.delete_file(actor=alice, file=of_bob)
    assert used(bob) == (0, 0)
    assert not on_disk(of_bob, home).exists()


def test_a_viewer_only_reads(alice: Actor, bob: Actor, spooled: Spool) -> None:
    viewer = dataclasses.replace(bob, role="viewer")
    file = put(alice, spooled, area="public")
    assert access_file(viewer, file.pk) == file
    with pytest.raises(Forbidden):
        put(viewer, spooled)
    with pytest.raises(Forbidden):
        services.create_folder(actor=viewer, area="private", folder="", name="d")
    with pytest.raises(Forbidden):
        services.delete_file(actor=viewer, file=file)


def test_the_same_path_needs_overwrite(alice: Actor, home: Path, spooled: Spool) -> None:
    file = put(alice, spooled, content=b"first")
    before = left_behind(home)
    with pytest.raises(Conflict, match="overwrite") as refused:
        put(alice, spooled, content=b"second")
    assert refused.value.code == "already_exists"
    assert on_disk(file, home).read_bytes() == b"first"
    assert left_behind(home) == before
    again = put(alice, spooled, content=b"a longer second", overwrite=True)
    assert again.pk == file.pk
    assert on_disk(file, home).read_bytes() == b"a longer second"
    assert used(alice) == (15, 1)
    assert left_behind(home) == before


def test_names_equal_in_nfc_are_the_same_and_case_matters(alice: Actor, spooled: Spool) -> None:
    put(alice, spooled, "\u00e9")
    with pytest.raises(Conflict):
        put(alice, spooled, "e\u0301")
    put(alice, spooled, "\u00c9")


def test_a_folder_upload_keeps_its_paths(alice: Actor, home: Path, spooled: Spool) -> None:
    files = services.upload_files(
        actor=alice,
        area="private",
        folder="",
        uploads=[("data/train/x.jsonl", spooled(b"1")), ("data/y.txt", spooled(b"22"))],
    )
    assert [file.path for file in files] == ["data/train/x.jsonl", "data/y.txt"]
    assert {file.path for file in list_folder(actor=alice, area="private", folder="data")} == {
        "data/train",
        "data/y.txt",
    }
    assert used(alice) == (3, 4)
    assert on_disk(files[0], home).read_bytes() == b"1"


@pytest.mark.parametrize("bad", ["../x", "/etc/cron.d/x", "ok/../../x", "ok/", "", "a/ok.txt/below"])
def test_a_folder_upload_is_all_or_nothing(bad: str, alice: Actor, home: Path, spooled: Spool) -> None:
    put(alice, spooled, "a", content=b"in the way")
    before, rows = left_behind(home), StoredFile.objects.count()
    with pytest.raises(DomainError):
        services.upload_files(
            actor=alice, area="private", folder="", uploads=[("ok/1.txt", spooled(b"1")), (bad, spooled(b"2"))]
        )
    assert left_behind(home) == before
    assert StoredFile.objects.count() == rows
    assert used(alice) == (10, 1)


def test_one_path_twice_in_an_upload_is_refused(alice: Actor, home: Path, spooled: Spool) -> None:
    with pytest.raises(Conflict, match="2 times"):
        services.upload_files(
            actor=alice, area="private", folder="", uploads=[("a", spooled(b"1")), ("./a", spooled(b"2"))]
        )
    assert left_behind(home) == []


def test_an_upload_into_a_missing_folder_or_a_file_is_refused(alice: Actor, home: Path, spooled: Spool) -> None:
    put(alice, spooled, "f")
    before = left_behind(home)
    with pytest.raises(NotFound, match="Create it first"):
        put(alice, spooled, folder="none")
    with pytest.raises(Conflict, match="is a file"):
        put(alice, spooled, folder="f")
    with pytest.raises(Invalid, match="none of private, public"):
        put(alice, spooled, area="secret")
    assert left_behind(home) == before


def test_a_folder_moves_with_everything_in_it(alice: Actor, home: Path, spooled: Spool) -> None:
    services.upload_files(
        actor=alice,
        area="private",
        folder="",
        uploads=[("Data/a/b.txt", spooled(b"upper")), ("data/a/b.txt", spooled(b"lower")), ("data2/c", spooled(b"c"))],
    )
    before = used(alice)
    folder = StoredFile.objects.get(path="data")
    moved = services.move_file(actor=alice, file=folder, folder="data2", name="neu", area="private")
    assert moved.path == "data2/neu"
    paths = set(StoredFile.objects.values_list("path", "parent", "name"))
    assert ("data2/neu/a/b.txt", "data2/neu/a", "b.txt") in paths
    assert ("Data/a/b.txt", "Data/a", "b.txt") in paths
    assert on_disk(StoredFile.objects.get(path="data2/neu/a/b.txt"), home).read_bytes() == b"lower"
    assert used(alice) == before


def test_a_move_never_goes_into_itself_or_over_something(alice: Actor, home: Path, spooled: Spool) -> None:
    services.upload_files(
        actor=alice, area="private", folder="", uploads=[("d/e/x", spooled(b"1")), ("y", spooled(b"2"))]
    )
    before = left_behind(home)
    folder, file = StoredFile.objects.get(path="d"), StoredFile.objects.get(path="y")
    with pytest.raises(Conflict) as refused:
        services.move_file(actor=alice, file=folder, folder="d/e")
    assert refused.value.code == "into_itself"
    with pytest.raises(Conflict) as refused:
        services.move_file(actor=alice, file=file, folder="d/e", name="x")
    assert refused.value.code == "already_exists"
    assert services.move_file(actor=alice, file=file, folder="").path == "y"
    assert left_behind(home) == before


def test_a_file_is_published_by_moving_it(alice: Actor, bob: Actor, home: Path, spooled: Spool) -> None:
    file = put(alice, spooled)
    services.move_file(actor=alice, file=file, folder="", area="public")
    assert access_file(bob, file.pk).area == "public"
    assert [path for path in left_behind(home) if "private" in path] == []


def test_deleting_a_folder_gives_back_what_was_in_it(alice: Actor, home: Path, spooled: Spool) -> None:
    services.upload_files(
        actor=alice, area="private", folder="", uploads=[("d/e/x", spooled(b"123")), ("D", spooled(b"stays"))]
    )
    services.delete_file(actor=alice, file=StoredFile.objects.get(path="d"))
    assert list(StoredFile.objects.values_list("path", flat=True)) == ["D"]
    assert used(alice) == (5, 1)
    assert [Path(path).name for path in left_behind(home)] == ["D"]


def test_the_limits_hold_and_say_what_is_left(alice: Actor, alice_user: User, home: Path, spooled: Spool) -> None:
    put(alice, spooled, "a", content=b"x" * 600)
    StorageUsage.objects.update(bytes_limit=1000, inodes_limit=2)
    before = left_behind(home)
    with pytest.raises(StorageFull, match=r"left.*needed.*used.*limit") as refused:
        put(alice, spooled, "b", content=b"x" * 401)
    assert (refused.value.status, refused.value.code) == (507, "quota_exceeded")
    put(alice, spooled, "b", content=b"x" * 400)
    with pytest.raises(StorageFull, match="files and folders"):
        services.create_folder(actor=alice, area="private", folder="", name="d")
    with pytest.raises(StorageFull):
        put(alice, spooled, "a", content=b"x" * 601, overwrite=True)
    put(alice, spooled, "a", content=b"x", overwrite=True)
    assert used(alice) == (401, 2)
    assert len(left_behind(home)) == len(before) + 1


def test_a_full_disk_refuses_and_damages_nothing(alice: Actor, home: Path, spooled: Spool, settings: Settings) -> None:
    file = put(alice, spooled)
    settings.DISK_RESERVE_MIB = 10**9
    with pytest.raises(StorageFull, match="free") as refused:
        put(alice, spooled, "b")
    assert refused.value.code == "insufficient_storage"
    assert on_disk(file, home).read_bytes() == b"hello"
    assert len(left_behind(home)) == 1


def test_an_upload_over_the_size_limit_is_refused(alice: Actor, home: Path, spooled: Spool, settings: Settings) -> None:
    settings.MAX_UPLOAD_MIB = 1
    with pytest.raises(TooLarge) as refused:
        put(alice, spooled, content=b"x" * (2**20 + 1))
    assert refused.value.code == "file_too_large"
    assert left_behind(home) == []


def test_a_link_in_the_way_is_never_followed(alice: Actor, home: Path, spooled: Spool, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("secret")
    services.create_folder(actor=alice, area="private", folder="", name="d")
    folder = on_disk(StoredFile.objects.get(path="d"), home)
    folder.rmdir()
    folder.symlink_to(outside)
    with pytest.raises(NotFound):
        put(alice, spooled, folder="d")
    assert [path.name for path in outside.iterdir()] == ["canary"]
    assert used(alice) == (0, 1)
    file = put(alice, spooled, "f")
    on_disk(file, home).unlink()
    on_disk(file, home).symlink_to(outside / "canary")
    with pytest.raises(Conflict, match="symlink") as refused:
        services.open_stored_file(actor=alice, file=file)
    assert refused.value.code == "not_a_regular_file"
    put(alice, spooled, "f", content=b"new", overwrite=True)
    assert (outside / "canary").read_text() == "secret"
    assert on_disk(file, home).read_bytes() == b"new"


def test_a_fifo_is_not_opened(alice: Actor, home: Path, spooled: Spool) -> None:
    file = put(alice, spooled)
    on_disk(file, home).unlink()
    os.mkfifo(on_disk(file, home))
    with pytest.raises(Conflict, match="fifo"):
        services.open_stored_file(actor=alice, file=file)
    on_disk(file, home).unlink()
    with pytest.raises(NotFound):
        services.open_stored_file(actor=alice, file=file)


def test_bytes_without_a_row_do_not_block_a_path(alice: Actor, home: Path, spooled: Spool) -> None:
    orphan = on_disk(put(alice, spooled, "a"), home).with_name("b")
    orphan.write_text("left by a crash")
    file = put(alice, spooled, "b", content=b"new")
    assert on_disk(file, home).read_bytes() == b"new"
    assert len(left_behind(home)) == 2


def test_a_failed_commit_puts_everything_back(
    alice: Actor, home: Path, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(alice, spooled, "a", content=b"old")
    services.create_folder(actor=alice, area="private", folder="", name="d")
    before = left_behind(home)

    def broken(*args: object, **kwargs: object) -> None:
        raise DatabaseError("the database went away")

    real = DiskChanges.place

    def place_then_break(self: DiskChanges, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        broken()

    monkeypatch.setattr(DiskChanges, "place", place_then_break)
    with pytest.raises(DatabaseError):
        put(alice, spooled, "a", content=b"new", overwrite=True)
    assert on_disk(file, home).read_bytes() == b"old"
    assert left_behind(home) == before
    monkeypatch.setattr(services, "release", broken)
    with pytest.raises(DatabaseError):
        services.delete_file(actor=alice, file=file)
    assert left_behind(home) == before
    assert used(alice) == (3, 2)


def test_what_crashed_processes_left_is_swept(
    alice: Actor, home: Path, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(alice, spooled)
    for name in (".trash", ".incoming"):
        (home / "files" / name / "dead").mkdir(parents=True)
        (home / "files" / name / "dead" / "x").write_text("x")
    put(alice, spooled, "young")
    assert (home / "files" / ".trash" / "dead").exists()
    monkeypatch.setattr("clavier.files.storage.ABANDONED_AFTER_S", -60)
    put(alice, spooled, "old")
    assert not (home / "files" / ".trash" / "dead").exists()
    assert not (home / "files" / ".incoming" / "dead").exists()


def test_a_download_is_seekable(alice: Actor, spooled: Spool) -> None:
    file = put(alice, spooled, content=b"0123456789")
    with services.open_stored_file(actor=alice, file=file) as stream:
        stream.seek(4)
        assert stream.read(3) == b"456"
    services.create_folder(actor=alice, area="private", folder="", name="d")
    with pytest.raises(Conflict, match="is a folder"):
        services.open_stored_file(actor=alice, file=StoredFile.objects.get(path="d"))
