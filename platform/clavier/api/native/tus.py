"""The headers of tus 1.0.0 (https://tus.io/protocols/resumable-upload), read strictly."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from django.utils.http import http_date
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from clavier.core.errors import DomainError, Invalid, quoted
from clavier.files.models import MAX_METADATA_CHARACTERS, ResumableUpload
from clavier.files.uploads import Checksum, offset_of

VERSION = "1.0.0"
EXTENSIONS = "creation,expiration,termination,checksum"
ALGORITHMS = ("sha1", "sha256", "sha512")
CHUNK_TYPE = "application/offset+octet-stream"
_BYTES = re.compile(r"\A[0-9]{1,18}\Z")
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")


class OtherVersion(DomainError):
    """The client speaks no tus 1.0.0 (412)."""

    status = 412
    default_code = "unsupported_version"
    headers = {"Tus-Version": VERSION}


def header(name: str, description: str, *, required: bool = True) -> OpenApiParameter:
    """How the OpenAPI document names a header."""
    return OpenApiParameter(name, str, OpenApiParameter.HEADER, description=description, required=required)


RESUMABLE = header("Tus-Resumable", f"The protocol's version: `{VERSION}`.")
LENGTH = header("Upload-Length", "Bytes of the whole file.")
METADATA = header(
    "Upload-Metadata",
    "`key base64,key base64`: `filename`, and where wanted `path` (the folder; missing ones are made), `area` "
    "(private, public), `sha256` of the file in hexadecimal, `overwrite` (true, false). Other keys are kept.",
)
OFFSET = header("Upload-Offset", "Where the bytes start: what HEAD says.")
CHECKSUM = header("Upload-Checksum", f"`algorithm base64` with one of {', '.join(ALGORITHMS)}.", required=False)


def require_version(request: Request) -> None:
    """Raises OtherVersion."""
    given = request.headers.get("Tus-Resumable")
    if given != VERSION:
        said = f"is {quoted(given, 40)}" if given else "is missing"
        raise OtherVersion(f"The header Tus-Resumable {said}; send {VERSION}.", field="Tus-Resumable")


def read_bytes(request: Request, name: str) -> int:
    """A header that is a number of bytes. Raises Invalid (``bad_header``)."""
    given = request.headers.get(name)
    if given is None or not _BYTES.match(given):
        said = "is missing" if given is None else f"{quoted(given, 40)} is no whole number from 0 on"
        raise _bad_header(name, f"{said}. Send the number of bytes in digits")
    return int(given)


def read_metadata(request: Request) -> tuple[str, dict[str, str]]:
    """Upload-Metadata as it came, and what it says. Raises Invalid (``bad_header``)."""
    name, given = "Upload-Metadata", request.headers.get("Upload-Metadata", "")
    if len(given) > MAX_METADATA_CHARACTERS:
        raise _bad_header(name, f"has {len(given):,} characters; {MAX_METADATA_CHARACTERS:,} are allowed")
    values: dict[str, str] = {}
    for pair in given.split(",") if given else ():
        key, _, encoded = pair.strip().partition(" ")
        if not key or key in values:
            raise _bad_header(name, f"has {'an empty key' if not key else f'{quoted(key, 60)} twice'}")
        try:
            values[key] = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise _bad_header(name, f"{quoted(key, 60)} has no text in base64 behind it") from error
    return given, values


def read_checksum(request: Request) -> Checksum | None:
    """Upload-Checksum, where it is sent. Raises Invalid (``bad_header``, ``unsupported_checksum``)."""
    name, given = "Upload-Checksum", request.headers.get("Upload-Checksum")
    if given is None:
        return None
    algorithm, _, encoded = given.partition(" ")
    if not encoded:
        raise _bad_header(name, f"{quoted(given, 60)} is not of the form 'algorithm base64'")
    if algorithm not in ALGORITHMS:
        message = f"{name}: {quoted(algorithm, 40)} is none of {', '.join(ALGORITHMS)}."
        raise Invalid(message, code="unsupported_checksum", field=name)
    try:
        digest = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        digest = b""
    size = hashlib.new(algorithm).digest_size
    if len(digest) != size:
        raise _bad_header(name, f"{quoted(given, 60)} has no {size} bytes in base64 behind {algorithm}")
    return Checksum(algorithm, digest)


def parse_sha256(text: str) -> str:
    """Empty, or 64 hexadecimal digits. Raises Invalid."""
    if text and not _SHA256.match(text.lower()):
        raise Invalid(f"sha256 {quoted(text, 80)} is not 64 hexadecimal digits.", field="sha256")
    return text.lower()


def headers_of(upload: ResumableUpload) -> dict[str, str]:
    """Where an upload stands."""
    return {
        "Upload-Offset": str(offset_of(upload)),
        "Upload-Expires": http_date(upload.expires_at.timestamp()),
        "Cache-Control": "no-store",
    }


def _bad_header(name: str, said: str) -> Invalid:
    return Invalid(f"{name} {said}.", code="bad_header", field=name)
