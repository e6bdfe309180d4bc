"""Bytes on their way out: ranges, validators, and headers that keep a browser from running them."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.http import content_disposition_header
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from clavier.core.errors import DomainError, quoted

CHUNK_BYTES = 1024 * 1024
#: What a browser could run if it were ever shown inline.
ACTIVE_TYPES = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "text/javascript")
#: How the OpenAPI document names the header.
RANGE = OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="One range: `bytes=0-1023`.")
_RANGE = re.compile(r"\Abytes=(\d{0,18})-(\d{0,18})\Z")


class RangeNotSatisfiable(DomainError):
    """The range starts after the end (416)."""

    status = 416
    default_code = "range_not_satisfiable"

    def __init__(self, given: str, size: int) -> None:
        super().__init__(f"Range {quoted(given)} lies outside of the {size} bytes.", field="Range")
        self.headers = {"Content-Range": f"bytes */{size}"}


class Slice:
    """``length`` bytes of an open file from ``start`` on; closes it."""

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self._stream, self._start, self._left = stream, start, length

    def __iter__(self) -> Iterator[bytes]:
        self._stream.seek(self._start)
        while self._left > 0 and (chunk := self._stream.read(min(CHUNK_BYTES, self._left))):
            self._left -= len(chunk)
            yield chunk

    def close(self) -> None:
        """Called by Django when the response ends, however it ends."""
        self._stream.close()


def send_file(
    request: Request, stream: BinaryIO, file_name: str, *, sha256: str = "", content_type: str = ""
) -> HttpResponseBase:
    """An open file as an attachment: 200, 206, 304. Raises RangeNotSatisfiable. The file is closed afterwards."""
    size = os.fstat(stream.fileno()).st_size
    etag = f'"{sha256}"' if sha256 else ""
    if etag and matches(request.headers.get("If-None-Match", ""), etag):
        stream.close()
        return HttpResponse(status=304, headers={"ETag": etag})
    wanted = wanted_range(request, size, etag)
    if wanted is not None and not wanted:
        stream.close()
        raise RangeNotSatisfiable(request.headers["Range"], size)
    span = wanted or range(size)
    response = StreamingHttpResponse(Slice(stream, span.start, len(span)), status=206 if wanted else 200)
    if wanted:
        response["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    response["Content-Length"] = str(len(span))
    response["Accept-Ranges"] = "bytes"
    if etag:
        response["ETag"] = etag
    attach(response, file_name, content_type or safe_type(file_name))
    return response


def attach(response: HttpResponseBase, file_name: str, content_type: str) -> None:
    """Headers of a download: never shown inline, never guessed, never run."""
    response["Content-Type"] = content_type
    response["Content-Disposition"] = content_disposition_header(True, file_name) or "attachment"
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["Cache-Control"] = "private, no-cache"


def safe_type(file_name: str) -> str:
    """The type that a name's ending says, unless a browser could run it."""
    guessed, encoding = mimetypes.guess_type(file_name)
    return guessed if guessed and not encoding and guessed not in ACTIVE_TYPES else "application/octet-stream"


def wanted_range(request: Request, size: int, etag: str) -> range | None:
    """The bytes asked for: None for all of them, an empty range when there are none such.

    Several ranges, other units and what can not be read mean all (RFC 9110, 14.2).
    """
    found = _RANGE.match(request.headers.get("Range", ""))
    if found is None or found.groups() == ("", ""):
        return None
    if_range = request.headers.get("If-Range")
    if if_range is not None and if_range != etag:
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1 if last else size))


def matches(header: str, etag: str) -> bool:
    """Whether If-None-Match names the tag."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or tags == ["*"]
