"""Bad input: file uploads, and every other path that a request may have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile

from clavier.files.models import StoredFile
from clavier.files.services import upload_file
from tests.api.legacy.conftest import form, forms
from tests.cases.registry import ENGLISH, Scene, case

UPLOAD = "/api/file/file/uploadFolder"
CREATE, EVALUATE = "/kernel/fineTune/createLlmFineTuneTask", "/model/evaluation/task/create"
MODEL, SERVICE = "/model/aiApplication/createAiApplication", "/model/modelServer/createModelInferenceServer"
PATHS = {
    "FILE-001": "../../etc/passwd",
    "FILE-002": "/etc/passwd",
    "FILE-003": "..%2f..%2fetc%2fpasswd",
    "FILE-004": "%252e%252e%252fetc%252fpasswd",
    "FILE-006": "....//....//etc/passwd",
    "FILE-007": "a\0/../../etc/passwd",
    "FILE-009": "\uff0e\uff0e/\uff0e\uff0e/etc/passwd",
    "FILE-010": "\u2024\u2024/etc/passwd",
    "FILE-011": "~root/.ssh/authorized_keys",
    "FILE-012": "../one-evil/x",
    "FILE-014": "/proc/self/environ",
}


def upload(scene: Scene, **request: Any) -> Any:
    """A form."""
    return scene.client.post(UPLOAD, **request, **ENGLISH)


def everywhere(path: str) -> Any:
    """Sends a path in every field that takes one."""

    def send(scene: Scene) -> Any:
        own = {"createWay": "custom", "command": "true", "modelVersionId": "", "datasetVersionId": ""}
        tuned = [scene.post(CREATE, {**own, field: path}) for field in ("inputDir", "outputDir", "workingDir")]
        judged = [scene.post(EVALUATE, {field: path}) for field in ("inputDir", "outputDir", "workDir")]
        version = scene.bodies[MODEL]["aiApplicationVersionList"][0]
        models = [
            scene.post(MODEL, {"aiApplicationVersionList": [{**version, field: path}]})
            for field in ("savePath", "configPath")
        ]
        image = scene.post("/docker/image/uploadOld", {"fileUrl": path, "imageName": "mine"})
        served = {**scene.bodies[SERVICE]["modelServerVersions"][0], "volumes": [{"src": path, "dst": "/dd"}]}
        service = scene.post(SERVICE, {"modelServerVersions": [served]})
        others = [*tuned, *judged, *models, image, service]
        first = upload(scene, **form(currentPath=path))
        assert {response.json()["error"] for response in others} == {first.json()["error"]}, [
            response.json() for response in others
        ]
        return first

    return send


for case_id, hostile in PATHS.items():
    case(case_id)(everywhere(hostile))


@case("FILE-016")
def a_name_that_climbs(scene: Scene) -> Any:
    return upload(scene, **form("../x.bin"))


@case("FILE-018")
def no_name(scene: Scene) -> Any:
    return upload(scene, **form(""))


@case("FILE-019")
def a_long_name(scene: Scene) -> Any:
    return upload(scene, **form("a" * 256))


@case("FILE-021")
def no_file(scene: Scene) -> Any:
    return upload(scene, **form(None, currentPath="a"))


@case("FILE-024")
def too_many_parts(scene: Scene) -> Any:
    return upload(scene, **forms([(f"{number}.txt", b"") for number in range(10_001)]))


@case("FILE-026")
def no_room_on_the_disk(scene: Scene) -> Any:
    settings.DISK_RESERVE_MIB = 2**31
    try:
        return upload(scene, **form())
    finally:
        settings.DISK_RESERVE_MIB = 0


@case("FILE-028")
def the_same_path_twice(scene: Scene) -> Any:
    return upload(scene, **form("there.txt"))


def swapped(put: Callable[[Path], None]) -> Any:
    """Downloads a file in whose place something else lies, as a program may leave it."""

    def send(scene: Scene) -> Any:
        row = StoredFile.objects.get(path="there.txt")
        path = settings.CLAVIER_FILES / str(row.tenant_id) / str(row.created_by_id) / row.area / row.path
        kept = path.rename(path.with_name("kept"))
        put(path)
        try:
            return scene.client.get(f"/api/v1/files/{row.pk}/content", **ENGLISH)
        finally:
            path.unlink()
            kept.rename(path)

    return send


case("FILE-030")(swapped(lambda path: path.symlink_to("/etc/shadow")))
case("FILE-031")(swapped(os.mkfifo))


@case("FILE-033")
def a_picture_with_a_script(scene: Scene) -> Any:
    content = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    upload = SimpleUploadedFile("x.svg", content)
    row = upload_file(actor=scene.alice, area="private", folder="", name="x.svg", upload=upload)
    response = scene.client.get(f"/api/v1/files/{row.pk}/content", **ENGLISH)
    assert response.status_code == 200
    assert b"".join(response.streaming_content) == content
    assert response["Content-Disposition"].startswith("attachment")
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response["Content-Security-Policy"]
    return []
