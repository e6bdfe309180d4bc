"""Many uploads at once on a database file: the limit holds and the ledger adds up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import close_old_connections, connection
from django.db.models import Sum

from clavier.accounts.services import create_user
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, DomainError, StorageFull
from clavier.files import services
from clavier.files.models import StorageUsage, StoredFile, TenantStorage
from clavier.files.usage import audit_storage, set_storage_limits
from tests.conftest import actor_of, left_behind

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def dora(home: Path) -> Actor:
    """The owner of a tenant, with room for ten small files."""
    actor = actor_of(create_user(username="dora", tenant_name="races", password="dora-secret-4")[0])
    StorageUsage.objects.create(tenant_id=actor.tenant_id, user_id=actor.user_id, bytes_limit=1000, inodes_limit=100)
    return actor


def uploads(actor: Actor, names: list[str]) -> list[DomainError | None]:
    """Upload 100 bytes under each name, all at once; what each was told."""

    def one(name: str) -> DomainError | None:
        try:
            upload = SimpleUploadedFile("x", b"x" * 100)
            services.upload_file(actor=actor, area="private", folder="", name=name, upload=upload)
        except DomainError as error:
            return error
        finally:
            close_old_connections()
            connection.close()
        return None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, names))


def test_racing_uploads_never_go_over_the_limit(dora: Actor, home: Path) -> None:
    answers = uploads(dora, [f"f{number}" for number in range(24)])
    assert answers.count(None) == 10
    assert {type(answer) for answer in answers if answer} == {StorageFull}
    usage = StorageUsage.objects.get()
    assert (usage.bytes_used, usage.inodes_used) == (1000, 10)
    assert StoredFile.objects.aggregate(total=Sum("size_bytes"))["total"] == 1000
    assert len(left_behind(home / "files")) == 10


def test_of_racing_uploads_to_one_path_one_wins(dora: Actor, home: Path) -> None:
    answers = uploads(dora, ["same"] * 8)
    assert answers.count(None) == 1
    assert {type(answer) for answer in answers if answer} == {Conflict}
    assert StorageUsage.objects.get().bytes_used == 100
    assert len(left_behind(home / "files")) == 1


def test_two_members_of_a_tenant_never_go_over_its_limit_together(dora: Actor, home: Path) -> None:
    emil = actor_of(create_user(username="emil", tenant_name="races", password="emil-secret-5")[0])
    set_storage_limits(tenant_id=dora.tenant_id, bytes_limit=700)
    with ThreadPoolExecutor(2) as pool:
        answers = [*pool.map(lambda actor: uploads(actor, [f"f{number}" for number in range(6)]), (dora, emil))]
    told = answers[0] + answers[1]
    assert told.count(None) == 7
    refusals = [answer for answer in told if answer]
    assert {type(answer) for answer in refusals} == {StorageFull}
    assert "for your tenant" in refusals[0].message
    assert TenantStorage.objects.get().bytes_used == 700
    assert sum(StorageUsage.objects.values_list("bytes_used", flat=True)) == 700, "a refusal charges nobody"
    assert audit_storage() == []
