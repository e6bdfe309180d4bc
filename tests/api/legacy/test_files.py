"""1. File upload: private and public, folders kept, confined to the user's area."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.files.models import StoredFile
from tests.api.legacy.conftest import ENGLISH, failure, form, forms, payload

PRIVATE, PUBLIC = "/api/file/file/uploadFolder", "/api/file/file/uploadPublicFolder"


def paths(area: str = "private") -> list[str]:
    """Every file and folder of an area."""
    return sorted(StoredFile.objects.filter(area=area).values_list("path", flat=True))


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_file_goes_into_the_named_folder_which_is_made(alice_client: APIClient, prefix: str) -> None:
    response = alice_client.post(f"{prefix}/file/file/uploadFolder", **form(currentPath="/upload/folder"))
    assert payload(response) is None
    assert response.json()["message"] == "文件上传成功"
    assert paths() == ["upload", "upload/folder", "upload/folder/a.txt"]


def test_the_folders_in_a_files_name_are_kept(alice_client: APIClient) -> None:
    payload(alice_client.post(PRIVATE, **form("data/train/训练 1.jsonl", currentPath="/faq")))
    assert paths() == ["faq", "faq/data", "faq/data/train", "faq/data/train/训练 1.jsonl"]


def test_several_files_of_one_form_come_together_or_not_at_all(alice_client: APIClient) -> None:
    payload(alice_client.post(PRIVATE, **forms([("d/a.txt", b"a"), ("d/b.txt", b"b")])))
    assert paths() == ["d", "d/a.txt", "d/b.txt"]
    failure(alice_client.post(PRIVATE, **forms([("d/c.txt", b"c"), ("d/a.txt", b"a")])), 409, "already_exists")
    assert paths() == ["d", "d/a.txt", "d/b.txt"]


def test_a_public_file_is_public_and_names_only_the_caller(alice_client: APIClient, alice_user: User) -> None:
    payload(alice_client.post(PUBLIC, **form(publicUserId=str(alice_user.pk), currentPath="shared")))
    payload(alice_client.post(PUBLIC, **form("b.txt", publicUserId="alice")))
    assert paths("public") == ["b.txt", "shared", "shared/a.txt"]


def test_charlie_uploads_nothing_into_the_public_area_of_alice(charlie_client: APIClient, alice_user: User) -> None:
    real = charlie_client.post(PUBLIC, **form(publicUserId=str(alice_user.pk)))
    message = failure(real, 403, "identity_mismatch", "publicUserId")
    assert failure(charlie_client.post(PUBLIC, **form(publicUserId="12345")), 403, "identity_mismatch") == message
    assert StoredFile.objects.count() == 0


def test_the_same_name_twice_needs_overwrite(alice_client: APIClient) -> None:
    payload(alice_client.post(PRIVATE, **form()))
    assert "overwrite" in failure(alice_client.post(PRIVATE, **form()), 409, "already_exists", "filename")
    payload(alice_client.post(PRIVATE, **form(content=b"second", overwrite="true")))
    assert StoredFile.objects.get().size_bytes == len(b"second")


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "..%2f..%2fetc", "%252e%252e%252fetc", "....//....//etc", "~root/.ssh"]
)
def test_no_path_leaves_the_area(alice_client: APIClient, path: str) -> None:
    failure(alice_client.post(PRIVATE, **form(currentPath=path)), 400, "path_outside_root", "currentPath")
    assert paths() == []


@pytest.mark.parametrize("name", ["../x.bin", "/x.bin", "a\\b.bin", "a/../b"])
def test_no_name_leaves_the_folder(alice_client: APIClient, name: str) -> None:
    assert "filename" in failure(alice_client.post(PRIVATE, **form(name)), 400, "bad_name", "filename")
    assert paths() == []


def test_messages_are_chinese_unless_english_is_asked_for(alice_client: APIClient) -> None:
    assert failure(alice_client.post(PRIVATE, {}), 400, "required", "file").startswith("file: 必填")
    assert "this field is required" in failure(alice_client.post(PRIVATE, {}, **ENGLISH), 400, "required", "file")
    assert alice_client.post(PRIVATE, **form(), **ENGLISH).json()["message"] == "The file was uploaded."
    assert alice_client.post(PRIVATE, **form(), **ENGLISH)["Content-Language"] == "en"


def test_nobody_uploads_without_credentials(anonymous_client: APIClient, viewer_client: APIClient) -> None:
    response = anonymous_client.post(PRIVATE, **form())
    failure(response, 401, "not_authenticated")
    assert response["WWW-Authenticate"].startswith("Bearer")
    failure(viewer_client.post(PRIVATE, **form()), 403, "forbidden")


def test_json_is_no_form(alice_client: APIClient) -> None:
    failure(alice_client.post(PRIVATE, {}, format="json"), 415, "unsupported_media_type")
    failure(alice_client.get(PRIVATE), 405, "method_not_allowed")
