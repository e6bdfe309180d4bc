"""Forms with files, with the names as the client sent them: a folder upload has the path in the file's name."""

from __future__ import annotations

from typing import Any

from django.http.multipartparser import MultiPartParser as DjangoMultiPartParser
from rest_framework.parsers import DataAndFiles

from clavier.api.common.forms import WholeFormParser

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


class FolderFormParser(WholeFormParser):
    """A multipart form; each file has the attribute ``sent_name``."""

    parser_class = _NamesKept

    def finish(self, parser: DjangoMultiPartParser, found: DataAndFiles[Any, Any]) -> DataAndFiles[Any, Any]:
        """With its names where there is one field of files; of several the order is unknown, and they are refused."""
        assert isinstance(parser, _NamesKept)
        if len(found.files) == 1:
            uploads = [upload for _, uploads in found.files.lists() for upload in uploads]
            for upload, name in zip(uploads, parser.sent_names, strict=True):
                setattr(upload, SENT_NAME, name)
        return found
