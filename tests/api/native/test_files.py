"""files: upload, folders, list, download with Range, move, delete."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from tests.api.native.conftest import World, error_of

URL = "/api/v1/files"


def send(client: APIClient, *files: tuple[str, bytes], **fields: Any) -> Any:
    """A multipart upload."""
    uploads = [SimpleUploadedFile(name, content) for name, content in files]
    return client.post(URL, {"file": uploads, **fields}, "multipart")


def content_of(response: Any) -> bytes:
    """The bytes of a streamed answer."""
    return b"".join(response.streaming_content)


def test_files_are_uploaded_with_their_own_names(alice_client: APIClient) -> None:
    response = send(alice_client, ("a.txt", b"one"), ("数据.json", b"[]"))
    assert response.status_code == 201
    first, second = response.json()["items"]
    assert (first["path"], first["area"], first["size_bytes"]) == ("a.txt", "private", 3)
    assert first["sha256"] == hashlib.sha256(b"one").hexdigest()
    assert second["name"] == "数据.json"


def test_a_folder_upload_keeps_its_tree(alice_client: APIClient) -> None:
    response = send(alice_client, ("a.txt", b"1"), ("b.txt", b"2"), paths=["d/a.txt", "d/e/b.txt"], area="public")
    assert [item["path"] for item in response.json()["items"]] == ["d/a.txt", "d/e/b.txt"]
    listed = alice_client.get(f"{URL}?area=public&folder=d").json()["items"]
    assert {(item["name"], item["is_folder"]) for item in listed} == {("a.txt", False), ("e", True)}


def test_a_path_for_each_file_or_none(alice_client: APIClient) -> None:
    error = error_of(send(alice_client, ("a.txt", b"1"), ("b.txt", b"2"), paths=["d/a.txt"]))
    assert (error["field"], error["message"]) == ("paths", "paths: 1 paths came for 2 files. Send one for each.")


def test_overwrite_must_be_asked_for(alice_client: APIClient) -> None:
    send(alice_client, ("a.txt", b"one"))
    response = send(alice_client, ("a.txt", b"two"))
    assert (response.status_code, error_of(response)["code"]) == (409, "already_exists")
    assert send(alice_client, ("a.txt", b"two"), overwrite="true").status_code == 201
    error = error_of(send(alice_client, ("a.txt", b"two"), overwrite="yes"))
    assert (error["code"], error["field"]) == ("wrong_type", "overwrite")


def test_an_upload_as_json_is_a_415_and_one_without_a_file_a_400(alice_client: APIClient) -> None:
    assert alice_client.post(URL, {"area": "private"}, "json").status_code == 415
    error = error_of(alice_client.post(URL, {"area": "private"}, "multipart"))
    assert (error["code"], error["field"]) == ("required", "file")


def test_a_way_out_of_the_area_is_refused(alice_client: APIClient) -> None:
    error = error_of(send(alice_client, ("a", b""), paths=["../a"]))
    assert error["code"] == "path_outside_root"


def test_private_files_are_for_their_owner_and_public_ones_for_the_tenant(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    private = send(alice_client, ("a.txt", b"1")).json()["items"][0]
    public = send(alice_client, ("b.txt", b"2"), area="public").json()["items"][0]
    owner = alice_client.get("/api/v1/me").json()["user"]["id"]
    for client, found in ((alice_client, [200, 200]), (bob_client, [404, 200]), (charlie_client, [404, 404])):
        urls = [f"{URL}/{item['id']}/content" for item in (private, public)]
        assert [client.get(url).status_code for url in urls] == found
    assert [item["name"] for item in bob_client.get(f"{URL}?area=public&owner_id={owner}").json()["items"]] == ["b.txt"]
    assert bob_client.get(f"{URL}?area=private&owner_id={owner}").json()["items"] == []
    assert charlie_client.get(f"{URL}?area=public&owner_id={owner}").json()["items"] == []
    assert bob_client.delete(f"{URL}/{public['id']}").status_code == 403


def test_a_download_is_an_attachment_that_no_browser_runs(alice_client: APIClient) -> None:
    page = send(alice_client, ("页.html", b"<script>alert(1)</script>")).json()["items"][0]
    response = alice_client.get(f"{URL}/{page['id']}/content")
    assert content_of(response) == b"<script>alert(1)</script>"
    assert response["Content-Type"] == "application/octet-stream"
    assert response["Content-Disposition"] == "attachment; filename*=utf-8''%E9%A1%B5.html"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("given", "status", "found", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=5-2", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_one_range_is_served(
    alice_client: APIClient, world: World, given: str, status: int, found: bytes, content_range: str | None
) -> None:
    response = alice_client.get(f"{URL}/{world.file.pk}/content", HTTP_RANGE=given)
    assert (response.status_code, content_of(response)) == (status, found)
    assert response.get("Content-Range") == content_range
    assert response["Content-Length"] == str(len(found))


def test_a_range_beyond_the_end_is_a_416(alice_client: APIClient, world: World) -> None:
    for given in ("bytes=10-", "bytes=-0"):
        response = alice_client.get(f"{URL}/{world.file.pk}/content", HTTP_RANGE=given)
        assert (response.status_code, response["Content-Range"]) == (416, "bytes */10")
        assert error_of(response)["code"] == "range_not_satisfiable"


def test_the_etag_saves_a_download_and_guards_a_range(alice_client: APIClient, world: World) -> None:
    url = f"{URL}/{world.file.pk}/content"
    etag = alice_client.get(url)["ETag"]
    assert etag == f'"{world.file.sha256}"'
    assert alice_client.get(url, HTTP_IF_NONE_MATCH=etag).status_code == 304
    assert alice_client.get(url, HTTP_RANGE="bytes=0-1", HTTP_IF_RANGE=etag).status_code == 206
    assert alice_client.get(url, HTTP_RANGE="bytes=0-1", HTTP_IF_RANGE='"other"').status_code == 200
    assert alice_client.head(url)["Content-Length"] == "10"


def test_a_folder_has_no_content(alice_client: APIClient, world: World) -> None:
    response = alice_client.get(f"{URL}/{world.folder.pk}/content")
    assert (response.status_code, error_of(response)["code"]) == (409, "not_a_regular_file")


def test_move_rename_and_delete(alice_client: APIClient, world: World) -> None:
    moved = alice_client.post(f"{URL}/{world.file.pk}/move", {"folder": "", "name": "x.txt"}, "json").json()
    assert moved["path"] == "x.txt"
    made = alice_client.post(f"{URL}/folders", {"folder": "data", "name": "训练"}, "json")
    assert (made.status_code, made.json()["path"]) == (201, "data/训练")
    assert alice_client.delete(f"{URL}/{world.folder.pk}").status_code == 204
    assert [item["path"] for item in alice_client.get(URL).json()["items"]] == ["x.txt"]


def test_an_upload_sent_twice_with_a_key_is_stored_once(alice_client: APIClient) -> None:
    def send_with_key(content: bytes) -> Any:
        body = {"file": SimpleUploadedFile("a.txt", content)}
        return alice_client.post(URL, body, "multipart", HTTP_IDEMPOTENCY_KEY="up-1")

    first, second = send_with_key(b"1"), send_with_key(b"1")
    assert (second.status_code, second.json()) == (201, first.json())
    assert second["Idempotent-Replay"] == "true"
    other = send_with_key(b"2")
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_mismatch")


def test_a_list_takes_the_same_number_of_queries_however_long(
    alice_client: APIClient, django_assert_num_queries: Callable[[int], Any]
) -> None:
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(2):
            alice_client.get(URL)
        send(alice_client, (f"a{number}", b""), (f"b{number}", b""))
