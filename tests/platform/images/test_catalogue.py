"""The catalogue's bad images: each is refused by the word and with the words that it asks for, or taken with a warning.

An import answers at once and refuses later, on the version; so the catalogue's HTTP status is not looked at here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clavier.core.errors import DomainError
from clavier.files.models import StoredFile
from clavier.files.services import upload_file
from clavier.images.references import check_image_name, check_tag
from clavier.images.services import import_image_archive, register_image
from runner.programs.lib.events import ProgramError
from tests.cases.registry import catalogue
from tests.image_tars import docker_archive, image
from tests.programs import test_import_image as archives

CASES = {case["id"]: case for case in catalogue() if case["area"] == "images"}
HEALTHCHECK = {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9}}
OVERRIDDEN = {"Env": ["LD_PRELOAD=/x.so", "NVIDIA_VISIBLE_DEVICES=all"]}

#: Case -> the archive.
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "IMG-002": lambda: bytes(2 * tarfile.RECORDSIZE),
    "IMG-003": lambda: docker_archive(image(), change=archives.spoil_the_manifest),
    "IMG-005": lambda: docker_archive(image(), tags=[["platform/trainer:1"]]),
    "IMG-008": lambda: docker_archive(image(), change=archives.flip_a_byte),
    "IMG-009": lambda: docker_archive(image(), change=archives.edit_the_config),
    "IMG-010": lambda: docker_archive(image(), change=archives.climb_out),
    "IMG-012": lambda: docker_archive(image(architecture="arm64")),
    "IMG-013": lambda: docker_archive(image(os="windows")),
    "IMG-015": lambda: docker_archive(image(runtime={"Volumes": {"/big": {}}})),
    "IMG-016": lambda: docker_archive(image(runtime=OVERRIDDEN)),
    "IMG-017": lambda: docker_archive(image(runtime={"WorkingDir": "/proc/self/fd/8"})),
    "IMG-018": lambda: docker_archive(image(runtime=HEALTHCHECK)),
    "IMG-020": lambda: docker_archive(image(archives.sparse_layer(1 << 40))),
    "IMG-022": archives.many_layers,
}
#: Case -> what is refused before any run.
AT_ONCE: dict[str, Callable[[], Any]] = {
    "IMG-024": lambda: check_image_name("Dzq/45:../x", field="imageName"),
    "IMG-025": lambda: check_tag("1.0 latest", field="imageTag"),
}


def test_every_case_of_the_catalogue_is_here() -> None:
    assert set(CASES) == {*ARCHIVES, *AT_ONCE, "IMG-021"}


@pytest.mark.parametrize("name", [name for name in ARCHIVES if CASES[name]["expect"]["error"]])
def test_a_bad_archive_is_refused_as_the_catalogue_says(tmp_path: Path, name: str) -> None:
    agrees(name, archives.refusal(tmp_path, ARCHIVES[name]()))


@pytest.mark.parametrize("name", [name for name in ARCHIVES if not CASES[name]["expect"]["error"]])
def test_what_only_looks_bad_is_taken_with_a_warning(tmp_path: Path, name: str) -> None:
    warnings = " ".join(archives.import_bytes(tmp_path, ARCHIVES[name]())["warnings"])
    (named,) = [word for word in CASES[name]["invariant_extra"] if word.startswith("warning_names:")]
    assert named.partition(":")[2] in warnings


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_bad_name_is_refused_as_the_catalogue_says(name: str) -> None:
    with pytest.raises(DomainError) as refused:
        AT_ONCE[name]()
    agrees(name, refused.value)


@pytest.mark.django_db
def test_an_archive_over_the_limit_is_refused_as_the_catalogue_says(alice: Any, spooled: Any) -> None:
    file = upload_file(actor=alice, area="private", folder="", name="i.tar", upload=spooled(b"x"))
    StoredFile.objects.update(size_bytes=41 << 30)
    with pytest.raises(DomainError) as refused:
        import_image_archive(actor=alice, image=register_image(actor=alice, name="a"), tag="1", file=file)
    agrees("IMG-021", refused.value)


def agrees(name: str, error: DomainError | ProgramError) -> None:
    """The error has the catalogue's word, and its message the words."""
    expected = CASES[name]["expect"]
    assert error.code == expected["error"]
    for word in expected["message_contains"]:
        assert word in error.message
