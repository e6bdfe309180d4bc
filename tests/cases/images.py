"""Bad input: images. What a request can not show is refused later, on the version, by the import's program."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clavier.files.models import StoredFile
from tests.cases.registry import Later, Scene, case
from tests.image_tars import docker_archive, image
from tests.programs import test_import_image as archives

IMPORT, REGISTER = "/docker/image/uploadOld", "/docker/image/upload"
HEALTHCHECK = {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9}}
OVERRIDDEN = {"Env": ["LD_PRELOAD=/x.so", "NVIDIA_VISIBLE_DEVICES=all"]}
Pack = Callable[[], bytes]

#: Case -> the archive.
REFUSED: dict[str, Pack] = {
    "IMG-002": lambda: bytes(2 * tarfile.RECORDSIZE),
    "IMG-003": lambda: docker_archive(image(), change=archives.spoil_the_manifest),
    "IMG-008": lambda: docker_archive(image(), change=archives.flip_a_byte),
    "IMG-009": lambda: docker_archive(image(), change=archives.edit_the_config),
    "IMG-010": lambda: docker_archive(image(), change=archives.climb_out),
    "IMG-012": lambda: docker_archive(image(architecture="arm64")),
    "IMG-013": lambda: docker_archive(image(os="windows")),
    "IMG-015": lambda: docker_archive(image(runtime={"Volumes": {"/big": {}}})),
    "IMG-017": lambda: docker_archive(image(runtime={"WorkingDir": "/proc/self/fd/8"})),
    "IMG-020": lambda: docker_archive(image(archives.sparse_layer(1 << 40))),
    "IMG-022": archives.many_layers,
}
#: Case -> the archive, and what the warning names.
WARNED: dict[str, tuple[Pack, str]] = {
    "IMG-005": (lambda: docker_archive(image(), tags=[["platform/trainer:1"]]), "platform/trainer:1"),
    "IMG-016": (lambda: docker_archive(image(runtime=OVERRIDDEN)), "LD_PRELOAD"),
    "IMG-018": (lambda: docker_archive(image(runtime=HEALTHCHECK)), "HEALTHCHECK"),
}


def refused(pack: Pack) -> Any:
    """Imports an archive that is no good."""

    def send(scene: Scene) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            error = archives.refusal(Path(folder), pack())
        return Later(error.code, error.message)

    return send


def warned(pack: Pack, named: str) -> Any:
    """Imports an archive that only looks bad."""

    def send(scene: Scene) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            warnings = " ".join(archives.import_bytes(Path(folder), pack())["warnings"])
        assert named in warnings
        return Later(None, warnings)

    return send


for case_id, archive in REFUSED.items():
    case(case_id)(refused(archive))
for case_id, (archive, name) in WARNED.items():
    case(case_id)(warned(archive, name))


@case("IMG-021")
def an_archive_over_the_limit(scene: Scene) -> Any:
    row = StoredFile.objects.filter(path="there.txt")
    row.update(size_bytes=41 << 30)
    try:
        return scene.post(IMPORT, {"imageName": "mine", "imageTag": "1", "fileUrl": "there.txt"})
    finally:
        row.update(size_bytes=1)


@case("IMG-024")
def an_image_name_that_is_none(scene: Scene) -> Any:
    return scene.post(REGISTER, {"imageName": "Dzq/45:../x"})


@case("IMG-025")
def a_tag_that_is_none(scene: Scene) -> Any:
    return scene.post(IMPORT, {"imageName": "mine", "imageTag": "1.0 latest", "fileUrl": "there.txt"})
