"""Forms with files, with the names as the client sent them: a folder upload has the path in the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from django.http.multipartparser import MultiPartParser as DjangoMultiPartParser
from django.http.multipartparser import MultiPartParserError
from rest_framework.exceptions import ParseError
from rest_framework.parsers import DataAndFiles, MultiPartParser

SENT_NAME = "sent_name"


class _NamesKept(DjangoMultiPartParser):
    """Django's parser keeps only the last part of a file's name; this one remembers what was sent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent_names: list[str] = []

    def sanitize_file_name(self, file_name: str) -> str:
        """Called once for each file, in order; a name that is nothing but dots would lose its file."""
        self.sent_names.append(file_name)
        return super().sanitize_file_name(file_name) or "unnamed"


class FolderFormParser(MultiPartParser):
    """A multipart form; each file has the attribute ``sent_name``."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> DataAndFiles[Any, Any]:
        """The form's fields and files. Raises ParseError."""
        request = (parser_context or {})["request"]
        encoding = (parser_context or {}).get("encoding", settings.DEFAULT_CHARSET)
        meta = {**request.META, "CONTENT_TYPE": media_type}
        parser = _NamesKept(meta, stream, request.upload_handlers, encoding)
        try:
            data, files = parser.parse()
        except MultiPartParserError as error:
            raise ParseError(str(error)) from error
        uploads = [upload for _, uploads in files.lists() for upload in uploads]
        if len(files) == 1:  # with several fields their order is unknown, and all but one are refused anyway
            for upload, name in zip(uploads, parser.sent_names, strict=True):
                setattr(upload, SENT_NAME, name)
        return DataAndFiles(data, files)
