"""Multipart forms that have arrived whole: Django takes the end of the body for the end of the last file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

from django.conf import settings
from django.http.multipartparser import MultiPartParser as DjangoMultiPartParser
from django.http.multipartparser import MultiPartParserError
from rest_framework.exceptions import ParseError
from rest_framework.parsers import DataAndFiles, MultiPartParser

from clavier.core.errors import Invalid

#: A boundary has at most 70 characters; what a client may add after the last one is a line break.
_TAIL_BYTES = 256


class WholeFormParser(MultiPartParser):
    """A multipart form whose last boundary has come; a body that was cut off stores nothing."""

    parser_class: Callable[..., DjangoMultiPartParser] = DjangoMultiPartParser

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> DataAndFiles[Any, Any]:
        """The form's fields and files. Raises ParseError, Invalid (``bad_request``) for a form without its end."""
        request = (parser_context or {})["request"]
        encoding = (parser_context or {}).get("encoding", settings.DEFAULT_CHARSET)
        body = _Remembering(stream)
        try:
            parser = self.parser_class(
                {**request.META, "CONTENT_TYPE": media_type}, body, request.upload_handlers, encoding
            )
            data, files = parser.parse()
        except MultiPartParserError as error:
            raise ParseError(str(error)) from error
        # Only the parser has read the boundary out of the header.
        if parser._content_length and not body.ends_with(parser._boundary):  # type: ignore[attr-defined]
            for _, uploads in files.lists():
                for upload in uploads:
                    upload.close()
            raise Invalid(
                "The form ends before its last boundary. Send the whole of it, and its whole length as Content-Length.",
                code="bad_request",
            )
        return self.finish(parser, DataAndFiles(data, files))

    def finish(self, parser: DjangoMultiPartParser, found: DataAndFiles[Any, Any]) -> DataAndFiles[Any, Any]:
        """The form as the views get it."""
        return found


class _Remembering:
    """A stream that knows what it ended with."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._tail = b""

    def read(self, *size: int) -> bytes:
        """As the stream."""
        piece = self._stream.read(*size)
        self._tail = (self._tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        return piece

    def ends_with(self, boundary: bytes) -> bool:
        """The last boundary has been read."""
        return b"--" + boundary + b"--" in self._tail
