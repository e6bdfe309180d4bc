"""2. Images: register, import an uploaded archive."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.test import APIClient

from clavier.accounts.models import User
from clavier.images.models import ContainerImage, ImageVersion
from tests.api.legacy.conftest import failure, form, payload

REGISTER, IMPORT = "/docker/image/upload", "/docker/image/uploadOld"
UPLOAD = "/api/file/file/uploadFolder"


def post(client: APIClient, route: str, **body: Any) -> Any:
    """A JSON request."""
    return client.post(route, body, format="json")


@pytest.fixture
def image(alice_client: APIClient, node: None) -> str:
    """Id of an image of Alice's, whose archive lies in her files."""
    payload(alice_client.post(UPLOAD, **form("aios-busybox.tar", b"no tar", currentPath="/dzq")))
    found: str = payload(post(alice_client, REGISTER, imageName="dzq/45", imageLabel=["工具"]))["imageId"]
    return found


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_an_image_is_registered_with_every_field(alice_client: APIClient, prefix: str) -> None:
    body = {
        "imageName": "dzq/45",
        "imageIcon": "a",
        "imageOverView": "综述",
        "imageLabel": ["x"],
        "imageDescribe": "描述",
    }
    response = post(alice_client, prefix + REGISTER, **body, userId="alice")
    made = ContainerImage.objects.get(pk=payload(response)["imageId"])
    assert response.json()["message"] == "新增镜像成功"
    assert [made.name, made.icon, made.overview, made.labels, made.description] == list(body.values())


def test_bad_input_has_the_code_of_the_document(alice_client: APIClient) -> None:
    assert failure(post(alice_client, REGISTER), 400, "required", "imageName")
    assert failure(post(alice_client, REGISTER, imageName="Dzq/45:../x"), 400, "bad_name", "imageName")


def test_the_same_name_twice_is_a_conflict(alice_client: APIClient, image: str) -> None:
    failure(post(alice_client, REGISTER, imageName="dzq/45"), 409, "already_exists", "imageName")


@pytest.mark.parametrize("by", ["id", "name", "names", "both"])
def test_an_import_starts_and_is_answered_at_once(alice_client: APIClient, image: str, by: str) -> None:
    named = {"id": {"imageId": image}, "name": {"imageName": "dzq/45"}, "names": {"imageName": ["dzq/45"]}}
    which = {**named, "both": named["id"] | named["name"]}[by]
    response = post(alice_client, IMPORT, fileUrl="dzq/aios-busybox.tar", imageTag="1.0", **which)
    started = payload(response)
    assert response.json()["message"] == "镜像开始上传"
    assert (started["imageId"], started["imageTag"], started["status"]) == (image, "1.0", "importing")
    assert ImageVersion.objects.get(pk=started["imageVersionId"]).run


def test_an_import_names_what_is_wrong(alice_client: APIClient, image: str) -> None:
    failure(post(alice_client, IMPORT, imageId=image), 400, "required", "fileUrl")
    failure(post(alice_client, IMPORT, fileUrl="dzq/aios-busybox.tar"), 400, "required", "imageId")
    failure(post(alice_client, IMPORT, fileUrl="none.tar", imageId=image), 404, "not_found", "fileUrl")
    failure(post(alice_client, IMPORT, fileUrl="../../etc/passwd", imageId=image), 400, "path_outside_root", "fileUrl")
    for other in ("dzq/47", ["dzq/45", "dzq/47"]):
        two = post(alice_client, IMPORT, fileUrl="dzq/aios-busybox.tar", imageId=image, imageName=other)
        failure(two, 400, "conflicting_fields", "imageName")
    bad_tag = post(alice_client, IMPORT, fileUrl="dzq/aios-busybox.tar", imageId=image, imageTag="1.0 latest")
    failure(bad_tag, 400, "bad_name", "imageTag")


def test_charlie_imports_nothing_into_the_image_of_alice(
    charlie_client: APIClient, alice_user: User, image: str
) -> None:
    payload(charlie_client.post(UPLOAD, **form("x.tar", b"x")))
    failure(post(charlie_client, IMPORT, fileUrl="x.tar", imageId=image), 404, "not_found", "imageId")
    failure(post(charlie_client, IMPORT, fileUrl="x.tar", imageName="dzq/45"), 404, "not_found", "imageName")
    failure(
        post(charlie_client, REGISTER, imageName="a", userId=str(alice_user.pk)), 403, "identity_mismatch", "userId"
    )
    payload(post(charlie_client, REGISTER, imageName="dzq/45"))
