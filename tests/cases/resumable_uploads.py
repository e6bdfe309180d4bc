"""Bad input: uploads in parts."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connections
from django.utils import timezone
from rest_framework.test import APIClient

from clavier.files import uploads
from clavier.files.models import ResumableUpload, StorageUsage, StoredFile
from clavier.files.usage import set_storage_limits
from tests.api.native.test_files import content_of
from tests.cases.registry import ENGLISH, Scene, case
from tests.conftest import actor_of

URL = "/api/v1/uploads"
MIB = 2**20
TUS = {**ENGLISH, "HTTP_TUS_RESUMABLE": "1.0.0"}


def create(client: APIClient, length: object, **metadata: str) -> Any:
    """A POST; the file is called part.bin unless told otherwise."""
    metadata = {"filename": "part.bin", **metadata}
    pairs = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())
    return client.post(URL, **TUS, HTTP_UPLOAD_LENGTH=str(length), HTTP_UPLOAD_METADATA=pairs)


def patch(client: APIClient, url: str, offset: int, content: bytes, **headers: Any) -> Any:
    """A part."""
    headers = {**TUS, "HTTP_UPLOAD_OFFSET": str(offset), **headers}
    return client.generic("PATCH", url, content, "application/offset+octet-stream", **headers)


def offset_at(client: APIClient, url: str) -> int:
    """Where to go on."""
    return int(client.head(url, **TUS)["Upload-Offset"])


def complete(client: APIClient, url: str, content: bytes) -> None:
    """The file is made and has these bytes; it is deleted again."""
    made = client.post(f"{url}/complete", {"sha256": hashlib.sha256(content).hexdigest()}, "json", **ENGLISH)
    assert made.status_code == 200, made.content
    file = f"/api/v1/files/{made.json()['id']}"
    assert content_of(client.get(f"{file}/content")) == content
    assert client.delete(file).status_code == 204


@contextmanager
def opened(scene: Scene, length: int, **metadata: str) -> Iterator[str]:
    """An upload; what is left of it in the end is deleted."""
    made = create(scene.client, length, **metadata)
    assert made.status_code == 201, made.content
    try:
        yield made["Location"]
    finally:
        assert scene.client.delete(made["Location"], **TUS).status_code in (204, 404)


@case("UPL-001")
def a_part_at_the_wrong_offset(scene: Scene) -> Any:
    with opened(scene, 9 * MIB) as url:
        assert patch(scene.client, url, 0, bytes(8 * MIB)).status_code == 204
        refused = patch(scene.client, url, 0, b"x")
        assert offset_at(scene.client, url) == 8 * MIB
        return refused


@case("UPL-003")
def an_unknown_checksum(scene: Scene) -> Any:
    with opened(scene, 1) as url:
        return patch(scene.client, url, 0, b"x", HTTP_UPLOAD_CHECKSUM="crc7 xx")


@case("UPL-004")
def half_of_a_checksum(scene: Scene) -> Any:
    with opened(scene, 1) as url:
        return patch(scene.client, url, 0, b"x", HTTP_UPLOAD_CHECKSUM="sha256")


@case("UPL-005")
def another_file_than_declared(scene: Scene) -> Any:
    with opened(scene, 5, sha256=hashlib.sha256(b"right").hexdigest()) as url:
        assert patch(scene.client, url, 0, b"wrong").status_code == 204
        refused = scene.client.post(f"{url}/complete", {}, "json", **ENGLISH)
        assert not StoredFile.objects.filter(name="part.bin").exists()
        assert patch(scene.client, url, 0, b"right").status_code == 204
        complete(scene.client, url, b"right")
        return refused


@case("UPL-006")
def more_than_declared(scene: Scene) -> Any:
    with opened(scene, 3) as url:
        refused = patch(scene.client, url, 0, b"four")
        assert offset_at(scene.client, url) == 0
        return refused


@case("UPL-007")
def complete_at_one_half(scene: Scene) -> Any:
    with opened(scene, 4) as url:
        assert patch(scene.client, url, 0, b"on").status_code == 204
        return scene.client.post(f"{url}/complete", {}, "json", **ENGLISH)


@case("UPL-009")
def an_expired_upload(scene: Scene) -> Any:
    used = StorageUsage.objects.get(user_id=scene.alice.user_id).bytes_used
    with opened(scene, 5) as url:
        assert patch(scene.client, url, 0, b"on").status_code == 204
        ResumableUpload.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        refused = patch(scene.client, url, 2, b"off")
        assert StorageUsage.objects.get(user_id=scene.alice.user_id).bytes_used == used
        return refused


@case("UPL-010")
def two_writers(scene: Scene) -> Any:
    """One of them writes; the other is told that it comes too early or too late."""
    content, statuses = random.randbytes(4 * MIB), []

    def write() -> None:
        statuses.append(patch(scene.client, url, 0, content).status_code)
        connections.close_all()

    with opened(scene, len(content)) as url:
        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(statuses) in ([204, 409], [204, 423])
        refused = patch(scene.client, url, 0, content)
        complete(scene.client, url, content)
        return refused


@case("UPL-011")
def no_length(scene: Scene) -> Any:
    return [create(scene.client, length) for length in (-1, "abc", "1e9", "")]


@case("UPL-012")
def too_many_uploads(scene: Scene) -> Any:
    limit, settings.MAX_OPEN_UPLOADS = settings.MAX_OPEN_UPLOADS, 2
    stranger = APIClient()
    stranger.force_authenticate(scene.victim, actor_of(scene.victim))
    try:
        with opened(scene, 1), opened(scene, 1):
            refused = create(scene.client, 1)
            theirs = create(stranger, 1)
        assert stranger.delete(theirs["Location"], **TUS).status_code == 204
        return refused
    finally:
        settings.MAX_OPEN_UPLOADS = limit


@case("UPL-013")
def a_process_killed_in_mid_chunk(scene: Scene) -> Any:
    content = random.randbytes(3 * MIB)
    at = random.randrange(MIB + 1, len(content))
    with opened(scene, len(content)) as url:
        killed(scene, url, content, at)
        offset = offset_at(scene.client, url)
        assert MIB <= offset <= at
        assert patch(scene.client, url, offset, content[offset:]).status_code == 204
        complete(scene.client, url, content)
    return []


def killed(scene: Scene, url: str, content: bytes, at: int) -> None:
    """A process that sends a part and dies by SIGKILL when so many bytes have been read."""
    every, uploads.DURABLE_EVERY_BYTES = uploads.DURABLE_EVERY_BYTES, MIB
    connections.close_all()  # what two processes share, the one that dies would break
    try:
        child = os.fork()
        if not child:
            try:
                body = {"wsgi.input": Deadly(content, at), "CONTENT_LENGTH": str(len(content))}
                patch(scene.client, url, 0, b"", **body)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finally:
        uploads.DURABLE_EVERY_BYTES = every


class Deadly(io.BytesIO):
    """A body whose reader does not live to see its end."""

    def __init__(self, content: bytes, at: int) -> None:
        super().__init__(content[:at])
        self._at = at

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, or SIGKILL."""
        if self.tell() == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(size)


@case("FILE-025")
def more_than_the_quota_has_left(scene: Scene) -> Any:
    usage = StorageUsage.objects.get(user_id=scene.alice.user_id)
    left = usage.bytes_limit - usage.bytes_used
    refused = create(scene.client, left + 1)
    set_storage_limits(tenant_id=usage.tenant_id, user_id=usage.user_id, bytes_limit=usage.bytes_used + 10)
    with opened(scene, 10):
        again = create(scene.client, 1)
    set_storage_limits(tenant_id=usage.tenant_id, user_id=usage.user_id, bytes_limit=usage.bytes_limit)
    return [refused, again]
