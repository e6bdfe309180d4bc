"""Resumable uploads, beside the refusals of tests/cases/resumable_uploads.py."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from clavier.core.actor import Actor
from clavier.core.errors import Invalid
from clavier.files.models import ResumableUpload, StorageUsage, StoredFile
from clavier.files.uploads import append, create_upload, remove_expired
from clavier.files.usage import audit_storage
from tests.api.native.conftest import error_of
from tests.api.native.test_files import content_of
from tests.cases.resumable_uploads import MIB, TUS, URL, create, offset_at, patch
from tests.conftest import left_behind


def test_a_file_comes_in_parts(alice_client: APIClient, home: Path) -> None:
    made = create(alice_client, 6, filename="训练.txt", path="data/new", area="public", filetype="text/plain")
    url = made["Location"]
    assert (made.status_code, made["Tus-Resumable"], made["Upload-Offset"]) == (201, "1.0.0", "0")
    assert url == f"{URL}/{made.json()['id']}"
    assert [item["path"] for item in alice_client.get(URL).json()["items"]] == ["data/new/训练.txt"]
    part = patch(alice_client, url, 0, b"one", HTTP_UPLOAD_CHECKSUM=checksum(b"one"))
    assert (part.status_code, part["Upload-Offset"]) == (204, "3")
    assert "Upload-Expires" in part
    head = alice_client.head(url, **TUS)
    assert (head["Upload-Offset"], head["Upload-Length"], head["Cache-Control"]) == ("3", "6", "no-store")
    assert "filetype dGV4dC9wbGFpbg==" in head["Upload-Metadata"]
    instead = alice_client.post(
        url, b"two", content_type="application/offset+octet-stream", **TUS, HTTP_UPLOAD_OFFSET="3",
        HTTP_X_HTTP_METHOD_OVERRIDE="PATCH",
    )  # fmt: skip
    assert (instead.status_code, alice_client.get(url).json()["offset"]) == (204, 6)
    file = alice_client.post(f"{url}/complete", {}, "json").json()
    assert (file["area"], file["path"], file["size_bytes"]) == ("public", "data/new/训练.txt", 6)
    assert file["sha256"] == hashlib.sha256(b"onetwo").hexdigest()
    assert content_of(alice_client.get(f"/api/v1/files/{file['id']}/content")) == b"onetwo"
    assert alice_client.head(url, **TUS).status_code == 404
    assert [Path(path).name for path in left_behind(home / "files")] == ["训练.txt"]
    assert audit_storage() == []


def test_options_say_what_is_spoken(alice_client: APIClient) -> None:
    answer = alice_client.options(URL)
    assert (answer.status_code, answer["Tus-Version"]) == (204, "1.0.0")
    assert answer["Tus-Extension"] == "creation,expiration,termination,checksum"
    assert answer["Tus-Checksum-Algorithm"].startswith("sha1,sha256")
    assert int(answer["Tus-Max-Size"]) > 0


def test_what_is_given_up_is_free_again(alice_client: APIClient, home: Path) -> None:
    url = create(alice_client, 6)["Location"]
    patch(alice_client, url, 0, b"one")
    assert StorageUsage.objects.get().bytes_used == 6
    assert alice_client.delete(url, **TUS).status_code == 204
    assert (StorageUsage.objects.get().bytes_used, left_behind(home / "files")) == (0, [])


def test_a_stranger_and_a_member_find_nothing(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    url = create(alice_client, 3)["Location"]
    for client in (bob_client, charlie_client):
        answers = [client.head(url, **TUS), patch(client, url, 0, b"one"), client.delete(url, **TUS)]
        answers.append(client.post(f"{url}/complete", {}, "json"))
        assert [answer.status_code for answer in answers] == [404] * 4
        assert client.get(URL).json()["items"] == []
    assert offset_at(alice_client, url) == 0


def test_a_viewer_begins_none(viewer_client: APIClient) -> None:
    assert create(viewer_client, 3).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"HTTP_TUS_RESUMABLE": "0.2.2"}, 412, "unsupported_version"),
        ({"HTTP_UPLOAD_METADATA": "filename"}, 400, "required"),
        ({"HTTP_UPLOAD_METADATA": "filename !"}, 400, "bad_header"),
        ({"HTTP_UPLOAD_METADATA": "a YQ==,a YQ=="}, 400, "bad_header"),
        ({"HTTP_UPLOAD_METADATA": "filename Li4="}, 400, "bad_name"),
        ({"HTTP_UPLOAD_METADATA": "filename YQ==,path Li4vLi4="}, 400, "path_outside_root"),
        ({"HTTP_UPLOAD_METADATA": "filename YQ==,area YQ=="}, 400, "not_a_choice"),
        ({"HTTP_UPLOAD_METADATA": "filename YQ==,overwrite YQ=="}, 400, "not_a_choice"),
        ({"HTTP_UPLOAD_METADATA": "filename YQ==,sha256 YQ=="}, 400, "bad_value"),
        ({"HTTP_UPLOAD_LENGTH": "1" * 17}, 413, "quota_exceeded"),
    ],
)
def test_what_is_no_upload_is_not_begun(
    alice_client: APIClient, headers: dict[str, str], status: int, code: str
) -> None:
    good = {**TUS, "HTTP_UPLOAD_LENGTH": "1", "HTTP_UPLOAD_METADATA": "filename YQ=="}
    answer = alice_client.post(URL, **{**good, **headers})
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert answer["Tus-Resumable"] == "1.0.0"
    assert not ResumableUpload.objects.exists()


def test_a_part_with_another_checksum_or_type_is_not_taken(alice_client: APIClient, home: Path) -> None:
    url = create(alice_client, 3)["Location"]
    wrong = patch(alice_client, url, 0, b"one", HTTP_UPLOAD_CHECKSUM=checksum(b"two"))
    assert (wrong.status_code, error_of(wrong)["code"]) == (460, "checksum_mismatch")
    typed = alice_client.patch(url, {}, "json", **TUS, HTTP_UPLOAD_OFFSET="0")
    assert (typed.status_code, error_of(typed)["code"]) == (415, "unsupported_media_type")
    assert offset_at(alice_client, url) == 0


def test_while_one_writes_the_other_is_locked_out(alice_client: APIClient, home: Path) -> None:
    url = create(alice_client, 6)["Location"]
    patch(alice_client, url, 0, b"one")
    with open(part_of(home, url), "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        answers = [patch(alice_client, url, 3, b"two"), alice_client.delete(url, **TUS)]
        ResumableUpload.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        remove_expired()
        assert ResumableUpload.objects.exists()
    assert [(answer.status_code, error_of(answer)["code"]) for answer in answers] == [(423, "upload_locked")] * 2


def test_of_a_broken_connection_what_came_stays(alice: Actor, alice_client: APIClient) -> None:
    """Read in pieces, so that the memory stays flat."""
    upload = create_upload(actor=alice, size_bytes=5 * MIB, area="private", folder="", name="a")
    body = Counting(bytes(3 * MIB + 1))
    with pytest.raises(Invalid) as refused:
        append(actor=alice, upload=upload, offset=0, body=body, length=5 * MIB)
    assert (refused.value.code, body.largest) == ("client_disconnected", MIB)
    assert offset_at(alice_client, f"{URL}/{upload.pk}") == 3 * MIB + 1


def test_a_taken_path_is_refused_unless_it_shall_be_replaced(alice_client: APIClient) -> None:
    first, second = create(alice_client, 0)["Location"], create(alice_client, 0)["Location"]
    assert alice_client.post(f"{first}/complete", {}, "json").status_code == 200
    taken = [create(alice_client, 0), alice_client.post(f"{second}/complete", {}, "json")]
    assert [(answer.status_code, error_of(answer)["code"]) for answer in taken] == [(409, "already_exists")] * 2
    assert alice_client.post(f"{second}/complete", {"overwrite": True}, "json").status_code == 200
    assert (StoredFile.objects.count(), ResumableUpload.objects.count(), audit_storage()) == (1, 0, [])


def test_housekeeping_removes_what_expired_and_parts_without_an_upload(alice_client: APIClient, home: Path) -> None:
    old, new = create(alice_client, 3)["Location"], create(alice_client, 3, filename="new")["Location"]
    for url in (old, new):
        patch(alice_client, url, 0, b"one")
    ResumableUpload.objects.filter(path="part.bin").update(expires_at=timezone.now() - timedelta(seconds=1))
    part_of(home, new).with_name("dead").touch()
    remove_expired()
    assert left_behind(home / "files") == [f".resumable/{new.rpartition('/')[2]}"]
    assert audit_storage() == []


def part_of(home: Path, url: str) -> Path:
    """Where the bytes of an upload are."""
    return home / "files" / ".resumable" / url.rpartition("/")[2]


def checksum(content: bytes) -> str:
    """The header for these bytes."""
    return f"sha1 {base64.b64encode(hashlib.sha1(content).digest()).decode()}"


class Counting(io.BytesIO):
    """A body that knows how much was asked for at once."""

    largest = 0

    def read(self, size: Any = -1) -> bytes:
        """As the stream."""
        self.largest = max(self.largest, size)
        return super().read(size)
