"""Pulling an image from a registry: the HTTP API that all registries speak (OCI distribution), with token logins."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from runner.contract import exits
from runner.programs.images.archive import Chosen, descriptors
from runner.programs.images.config import check_config, json_object
from runner.programs.images.layers import Bounds, Layer, LayerArchive
from runner.programs.lib.events import ProgramError
from runner.programs.lib.outbound import Outbound, read_document, read_object

_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'([a-z_]+)="([^"]*)"')
#: Tries in a row without a single new byte.
_TRIES = 5
BACK_OFF_S = 0.5


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image is: ``address`` (``https://host:port``), the repository, and a tag or digest in it."""

    address: str
    repository: str
    reference: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.reference} on {self.address}"


class Registry:
    """One repository of a registry. Every method raises ProgramError."""

    def __init__(self, outbound: Outbound, source: Source, credentials: dict[str, str] | None) -> None:
        self._outbound = outbound
        self._source = source
        self._credentials = credentials
        self._authorization = ""

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """A manifest or index, and its digest, which is checked where the reference is one."""
        answer = self.open(f"manifests/{reference}", {"Accept": ", ".join(_MANIFEST_TYPES)})
        content = read_document(answer, f"The manifest of {self._source}")
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if _DIGEST.fullmatch(reference) and digest != reference:
            raise ProgramError("bad_image", f"The digest of the manifest {reference} does not match its content.")
        return content, digest

    def document(self, digest: str) -> bytes:
        """A small blob, its digest checked."""
        content = read_document(self.open(f"blobs/{digest}"), f"The blob {digest}")
        if digest != f"sha256:{hashlib.sha256(content).hexdigest()}":
            raise ProgramError("bad_image", f"The digest of the blob {digest} does not match its content.")
        return content

    def open(self, path: str, headers: dict[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        """An answer with status 200 or 206, after a login where the registry wants one."""
        url = f"{self._source.address}/v2/{self._source.repository}/{path}"
        answer = self._get(url, headers)
        if answer.status == 401:
            challenge = answer.headers.get("WWW-Authenticate", "")
            answer.close()
            self._authorization = self._login(challenge)
            answer = self._get(url, headers)
        if answer.status in (200, 206):
            return answer
        answer.close()
        raise self._refusal(answer.status)

    def _get(self, url: str, headers: dict[str, str] | None) -> urllib3.BaseHTTPResponse:
        login = {"Authorization": self._authorization} if self._authorization else {}
        return self._outbound.get(url, {**(headers or {}), **login})

    def _login(self, challenge: str) -> str:
        """The Authorization header that a registry's challenge asks for."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._credentials:
            return self._basic()
        if kind.lower() != "bearer":
            raise self._refusal(401)
        asked = dict(_CHALLENGE.findall(rest))
        query = {name: asked[name] for name in ("service", "scope") if asked.get(name)}
        url = f"{asked.get('realm', '')}?{urlencode(query)}"
        answer = self._outbound.get(url, {"Authorization": self._basic()} if self._credentials else None)
        if answer.status != 200:
            answer.close()
            raise self._refusal(401)
        found = read_object(answer, "The answer of the registry's login")
        return f"Bearer {found.get('token') or found.get('access_token')}"

    def _basic(self) -> str:
        assert self._credentials is not None
        pair = f"{self._credentials['username']}:{self._credentials['password']}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _refusal(self, status: int) -> ProgramError:
        if status in (401, 403):
            given = "refuses the given user and password for" if self._credentials else "wants a login for"
            return ProgramError("login_needed", f"The registry {given} {self._source}.", field="username")
        if status == 404:
            return ProgramError("image_not_found", f"There is no {self._source}.", field="reference")
        return ProgramError(
            "host_unreachable", f"The registry answers {status} for {self._source}.", exit_code=exits.UNREACHABLE
        )


class BlobStream:
    """Reads a blob of known size; where the connection breaks it goes on at the same byte."""

    def __init__(self, registry: Registry, digest: str, size: int) -> None:
        self._registry, self._digest, self._size = registry, digest, size
        self._offset = 0
        self._answer: urllib3.BaseHTTPResponse | None = None

    def read(self, count: int) -> bytes:
        """1 to ``count`` bytes; empty at the end. Raises ProgramError."""
        for number in range(_TRIES):
            if self._offset == self._size:
                return b""
            try:
                self._answer = self._answer or self._open()
                piece: bytes = self._answer.read(min(count, self._size - self._offset))
            except (urllib3.exceptions.HTTPError, OSError):
                piece = b""
            if piece:
                self._offset += len(piece)
                return piece
            self._close()
            time.sleep(BACK_OFF_S * 2**number)
        raise ProgramError(
            "host_unreachable",
            f"The registry broke off the blob {self._digest} {_TRIES} times at byte {self._offset:,} of "
            f"{self._size:,}. Import it again.",
            exit_code=exits.UNREACHABLE,
        )

    def _open(self) -> urllib3.BaseHTTPResponse:
        headers = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        answer = self._registry.open(f"blobs/{self._digest}", headers)
        left = self._offset if answer.status == 200 else 0
        while left:  # the registry knows no ranges: pass over what is there already
            left -= len(answer.read(min(left, 1 << 20)) or self._broken())
        return answer

    def _broken(self) -> bytes:
        raise OSError("the body ended early")

    def _close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer = None


def pull(
    registry: Registry,
    source: Source,
    *,
    system: str,
    architectures: list[str],
    archive: LayerArchive,
    bounds: Bounds,
    on_bytes: Callable[[int, int], None],
) -> Chosen:
    """Take an image's layers into ``archive``, every blob checked. ``on_bytes``: (new bytes, total bytes).

    Raises ProgramError (``bad_image``, ``wrong_architecture``, ``file_too_large``, and what the others raise).
    """
    manifest, digest = _image_manifest(registry, source, system, architectures)
    config = registry.document(_digest_of(manifest.get("config")))
    check_config(config, system=system, architectures=architectures)  # before any layer is on its way
    listed = descriptors(manifest, "layers")
    total_bytes = sum(_size_of(described) for described in listed)
    bounds.announce(total_bytes)
    layers: dict[str, Layer] = {}
    for described in listed:
        blob_digest, size = _digest_of(described), _size_of(described)
        if blob_digest in layers:
            continue
        stream = BlobStream(registry, blob_digest, size)

        def read(count: int, stream: BlobStream = stream) -> bytes:
            piece = stream.read(count)
            bounds.taken_in += len(piece)
            on_bytes(len(piece), total_bytes)
            return piece

        layer = archive.add(read, f"the layer {blob_digest}")
        if layer.digest != blob_digest:
            raise ProgramError("bad_image", f"The digest of the layer {blob_digest} does not match its content.")
        layers[blob_digest] = layer
    return Chosen(config, [layers[_digest_of(described)] for described in listed], [], digest)


def read_credentials(path: str | None) -> dict[str, str] | None:
    """User and password out of the file that the platform has made for this run alone."""
    if path is None:
        return None
    found: dict[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def _image_manifest(
    registry: Registry, source: Source, system: str, architectures: list[str]
) -> tuple[dict[str, Any], str]:
    """The manifest of the image itself; of a list the entry for this platform."""
    content, digest = registry.manifest(source.reference)
    document = json_object(content, f"The manifest of {source}")
    if "manifests" in document:
        found = _entry_for(descriptors(document, "manifests"), system, architectures)
        content, digest = registry.manifest(_digest_of(found))
        document = json_object(content, f"The manifest of {source}")
    if document.get("schemaVersion") != 2 or "config" not in document:
        raise ProgramError("bad_image", f"The manifest of {source} is of an old or unknown kind. Push the image anew.")
    return document, digest


def _entry_for(listed: list[dict[str, Any]], system: str, architectures: list[str]) -> dict[str, Any]:
    platforms = []
    for described in listed:
        found = described.get("platform")
        found = found if isinstance(found, dict) else {}
        if found.get("os") == system and found.get("architecture") in architectures:
            return described
        platforms.append(f"{found.get('os')}/{found.get('architecture')}")
    wanted = ", ".join(f"{system}/{architecture}" for architecture in architectures)
    raise ProgramError("wrong_architecture", f"The image is for {', '.join(platforms)[:200]}; not for {wanted}.")


def _digest_of(described: Any) -> str:
    digest = described.get("digest") if isinstance(described, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ProgramError("bad_image", f"The manifest names the digest {digest!r:.80}; sha256 digests are read.")
    return digest


def _size_of(described: dict[str, Any]) -> int:
    size = described.get("size")
    if not isinstance(size, int) or size < 0:
        raise ProgramError("bad_image", f"The manifest gives the size {size!r:.40} for a layer.")
    return size
