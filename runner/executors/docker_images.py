"""Images on one engine: found by id, loaded from an archive by a process of its own, kept by a name of ours.

Run as a script it is that process: ``python -m runner.executors.docker_images ENGINE_URL FOLDER ID ARCHIVE``.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from runner.contract.images import engine_tag
from runner.executors import control
from runner.executors.base import ExecutorError, StoredImage
from runner.executors.docker_client import Engine
from runner.executors.launching import REPOSITORY

_ID = re.compile(r"sha256:[0-9a-f]{64}")
_PIECE_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 16 << 20


class ImageUnfit(Exception):
    """This image can not be had or not be run here, ever. The message says why."""


class EngineImages:
    """Implements ``ImageStore``. ``folder``: the platform's own, for the locks and failures of loaders."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder

    def images(self) -> list[StoredImage]:
        """What this installation keeps on the engine. Raises ExecutorError."""
        found = self._engine.images(engine_tag("*"))
        return [StoredImage(image["Id"], int(image["Size"])) for image in found]

    def has_image(self, image_id: str) -> bool:
        """Whether the engine has it, kept by us or not. Raises ExecutorError."""
        return self._engine.image(image_id) is not None

    def remove_image(self, image_id: str) -> None:
        """No longer keep it; it goes unless the operator named it too. Raises ExecutorError while containers use it."""
        self._engine.remove_image(engine_tag(image_id))

    def find(self, image_id: str, archive: str | None) -> dict[str, Any] | None:
        """The engine's facts of a usable image; None while it is being loaded. Raises ImageUnfit, ExecutorError."""
        if not _ID.fullmatch(image_id):
            raise ImageUnfit(f"{image_id!r} is no image id: sha256: and 64 hexadecimal digits are.")
        facts = self._engine.image(image_id)
        if facts is not None:
            self.refuse_unfit(facts)
            self._keep(facts)
            return facts
        if archive is None or not os.path.isfile(archive):
            where = "and no archive of it is known" if archive is None else f"and its archive {archive} is missing"
            raise ImageUnfit(f"The engine {self._engine.url} has no image {image_id}, {where}. Import it again.")
        if (failure := control.read_json(self._failure(image_id))) is not None:
            self._failure(image_id).unlink(missing_ok=True)
            if failure["is_final"]:
                raise ImageUnfit(failure["reason"])
            raise ExecutorError(failure["reason"])
        self._start_loader(image_id, archive)
        return None

    def refuse_unfit(self, facts: dict[str, Any]) -> None:
        """Raise ImageUnfit for an image that must not or can not run on this engine."""
        image = facts["Id"]
        if volumes := sorted((facts["Config"] or {}).get("Volumes") or ()):
            raise ImageUnfit(
                f"Image {image} declares VOLUME {', '.join(volumes)}: what is written there would escape every limit. "
                "Build it without."
            )
        mine, theirs = f"linux/{self._engine.facts.architecture}", f"{facts['Os']}/{facts['Architecture']}"
        if mine != theirs:
            raise ImageUnfit(f"Image {image} is made for {theirs}; this engine runs {mine}.")

    def load(self, image_id: str, archive: str) -> None:
        """Load now, in this process, and keep the image. Raises ImageUnfit, ExecutorError."""
        self._engine.load(only_image(archive, image_id))
        facts = self._engine.image(image_id)
        if facts is None:
            raise ImageUnfit(f"The engine did not get image {image_id} out of {archive}, though it loaded it.")
        self.refuse_unfit(facts)
        self._keep(facts)

    def run_loader(self, image_id: str, archive: str) -> None:
        """The loader's work; a failure is left where ``find`` sees it. Raises OSError."""
        try:
            self.load(image_id, archive)
        except (ImageUnfit, ExecutorError, OSError) as error:
            failure = {"reason": str(error), "is_final": isinstance(error, ImageUnfit)}
            control.write_json(self._failure(image_id), failure)

    def _start_loader(self, image_id: str, archive: str) -> None:
        """Start a loader unless one is at work. It holds the lock, which it inherits, as long as it lives."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = [self._engine.url, str(self._folder), image_id, archive]
        with (
            open(self._folder / f"{_hex(image_id)}.lock", "a", encoding="ascii") as lock,
            open(self._folder / "loader.log", "ab") as log,
        ):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if self.has_image(image_id) or self._failure(image_id).exists():
                return  # a loader ended in this moment
            subprocess.Popen(
                [sys.executable, "-m", "runner.executors.docker_images", *arguments],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=(lock.fileno(),),
            )  # fmt: skip

    def _keep(self, facts: dict[str, Any]) -> None:
        tag = engine_tag(facts["Id"])
        if tag not in (facts.get("RepoTags") or ()):
            self._engine.tag(facts["Id"], *tag.split(":"))

    def _failure(self, image_id: str) -> Path:
        return self._folder / f"{_hex(image_id)}.failure.json"


def only_image(archive: str, image_id: str) -> Iterator[bytes]:
    """The tar of ``docker save`` again, with only this image in it and without any name. Raises ImageUnfit.

    So an archive can neither take over another image's name nor bring in others.
    """
    entry = _find_entry(archive, image_id)
    reader, writer = os.pipe()
    troubles: list[BaseException] = []

    def copy() -> None:
        try:
            with open(writer, "wb") as sink:
                _copy_without_names(archive, entry, sink)
        except (OSError, tarfile.TarError) as error:
            troubles.append(error)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    with open(reader, "rb") as source:
        while piece := source.read(_PIECE_BYTES):
            yield piece
    thread.join()
    if troubles:
        raise ImageUnfit(f"The archive {archive} can not be read: {troubles[0]}")


def _find_entry(archive: str, image_id: str) -> dict[str, Any]:
    """The entry of manifest.json whose configuration has the digest that is the image's id."""
    try:
        with tarfile.open(archive, "r:*") as tar:
            manifest = json.loads(_read(tar, "manifest.json"))
            for entry in manifest:
                if hashlib.sha256(_read(tar, entry["Config"])).hexdigest() == _hex(image_id):
                    return dict(entry)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ImageUnfit(f"The archive {archive} is no image archive (docker save): {error}") from error
    raise ImageUnfit(f"The archive {archive} holds another image than {image_id}. Import it again.")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(tar.getmember(name))
    if stream is None:
        raise KeyError(f"{name} is no file")
    with stream:
        return stream.read(_MAX_CONFIG_BYTES)


def _copy_without_names(archive: str, entry: dict[str, Any], sink: IO[bytes]) -> None:
    manifest = json.dumps([entry | {"RepoTags": None}]).encode()
    with tarfile.open(archive, "r:*") as source, tarfile.open(fileobj=sink, mode="w|") as target:
        for member in source:
            if member.name in ("repositories", "index.json", "oci-layout"):
                continue
            if member.name == "manifest.json":
                member.size = len(manifest)
                target.addfile(member, io.BytesIO(manifest))
            else:
                target.addfile(member, source.extractfile(member) if member.isreg() else None)


def _hex(image_id: str) -> str:
    return image_id.removeprefix("sha256:")


def main(url: str, folder: str, image_id: str, archive: str) -> None:
    """Load one image."""
    EngineImages(Engine(url), Path(folder)).run_loader(image_id, archive)


if __name__ == "__main__":
    main(*sys.argv[1:])
