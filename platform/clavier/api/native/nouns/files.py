"""Files and folders of users."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.content import RANGE, send_file
from clavier.api.native.fields import Choice, Flag, Form, Identifier, Strict, Text
from clavier.api.native.nouns.common import Owned
from clavier.api.native.schema import BINARY, listed, operation
from clavier.api.native.views import FormView, NativeView
from clavier.core.errors import Invalid
from clavier.files.access import access_file
from clavier.files.extraction import extract_archive
from clavier.files.models import AREAS
from clavier.files.queries import list_folder
from clavier.files.services import create_folder, delete_file, move_file, open_stored_file, upload_files

_AREA_HELP = "private: only you; public: every member of the tenant may read."
_FOLDER_HELP = "Path of a folder in the area, such as `data/train`; empty: the top."


class File(Owned):
    """A file or folder."""

    area = serializers.ChoiceField(AREAS, help_text=_AREA_HELP)
    path = serializers.CharField(help_text="Relative to the area.")
    name = serializers.CharField()
    is_folder = serializers.BooleanField()
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField(help_text="Of the content; empty for folders.")
    modified_at = serializers.DateTimeField(help_text="When its content last changed.")


class FileFilters(Form):
    area = Choice(AREAS, default="private", help_text=_AREA_HELP)
    folder = Text(default="", allow_blank=True, max_length=4096, help_text=_FOLDER_HELP)
    owner_id = Identifier(required=False, help_text="Another member, whose public files are listed. Absent: you.")


class Upload(Form):
    """One file or many; all are stored or none."""

    area = Choice(AREAS, default="private", help_text=_AREA_HELP)
    folder = Text(default="", allow_blank=True, max_length=4096, help_text=_FOLDER_HELP)
    file = serializers.ListField(child=serializers.FileField(allow_empty_file=True), help_text="The files.")
    paths = serializers.ListField(
        child=Text(max_length=4096),
        required=False,
        help_text="For a folder upload: the path of each file relative to `folder`, in the same order.",
    )
    overwrite = Flag(default=False, help_text="Replace files that exist.")


class NewFolder(Strict):
    area = Choice(AREAS, default="private", help_text=_AREA_HELP)
    folder = Text(default="", allow_blank=True, max_length=4096, help_text="Path of the folder that gets it.")
    name = Text(max_length=255)


class Move(Strict):
    folder = Text(allow_blank=True, max_length=4096, help_text="Path of the new folder; empty: the top.")
    name = Text(required=False, max_length=255, help_text="The new name. Absent: unchanged.")
    area = Choice(AREAS, required=False, help_text="The new area. Absent: unchanged.")


class Extraction(Strict):
    area = Choice(AREAS, default="private", help_text=_AREA_HELP)
    folder = Text(default="", allow_blank=True, max_length=4096, help_text="Path of a folder of yours; empty: the top.")
    overwrite = Flag(default=False, help_text="Replace files that exist.")


class FilesView(FormView):
    @operation("list_files", "files", "List a folder", query=FileFilters, page_of=File, errors=(404,))
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(list_folder(actor=self.actor, **self.filters(FileFilters)), File)

    @operation("upload_files", "files", "Upload files", form=Upload, answer=listed("UploadedFiles", File(many=True)),
               status=201, errors=(404, 409, 507))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request) -> Response:
        """Files without paths keep their own names."""
        form = self.body(Upload)
        files, paths = form.pop("file"), form.pop("paths", None)
        if paths is not None and len(paths) != len(files):
            raise Invalid(f"paths: {len(paths)} paths came for {len(files)} files. Send one for each.", field="paths")
        names = paths or [upload.name for upload in files]
        stored = upload_files(actor=self.actor, uploads=list(zip(names, files, strict=True)), **form)
        return Response({"items": File(stored, many=True).data}, status=201)


class FoldersView(NativeView):
    @operation("create_folder", "files", "Create a folder", body=NewFolder, answer=File, status=201,
               errors=(404, 409, 507), examples=(
                   OpenApiExample("In the folder data", {"area": "private", "folder": "data", "name": "训练"},
                                  request_only=True),
               ))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request) -> Response:
        """In an existing folder."""
        return Response(File(create_folder(actor=self.actor, **self.body(NewFolder))).data, status=201)


class FileView(NativeView):
    @operation("get_file", "files", "A file or folder", answer=File, errors=(404,))
    def get(self, request: Request, file_id: UUID) -> Response:
        """Its facts, not its content."""
        return Response(File(access_file(self.actor, file_id)).data)

    @operation("delete_file", "files", "Delete a file, or a folder with everything in it", status=204,
               errors=(404, 409))  # fmt: skip
    def delete(self, request: Request, file_id: UUID) -> Response:
        """Refused while something refers to it."""
        delete_file(actor=self.actor, file=access_file(self.actor, file_id))
        return Response(status=204)


class FileMoveView(NativeView):
    @operation("move_file", "files", "Move or rename a file or folder", body=Move, answer=File, errors=(404, 409))
    def post(self, request: Request, file_id: UUID) -> Response:
        """Only the owner moves between the areas."""
        moved = move_file(actor=self.actor, file=access_file(self.actor, file_id), **self.body(Move))
        return Response(File(moved).data)


class FileExtractView(NativeView):
    @operation("extract_file", "files", "Unpack a zip, tar or tar.gz archive", body=Extraction,
               answer=listed("ExtractedFiles", File(many=True)), status=201, errors=(404, 409, 422, 507))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request, file_id: UUID) -> Response:
        """Into your own files; every file of it or none."""
        file = access_file(self.actor, file_id)
        made = extract_archive(actor=self.actor, file=file, **self.body(Extraction))
        return Response({"items": File(made, many=True).data}, status=201)


class FileContentView(NativeView):
    @operation("download_file", "files", "Download a file, or one range of it", answer=BINARY,
               media_type="application/octet-stream", parameters=(RANGE,), errors=(404, 409, 416))  # fmt: skip
    def get(self, request: Request, file_id: UUID) -> HttpResponseBase:
        """The ETag is the sha256 of the content."""
        file = access_file(self.actor, file_id)
        return send_file(request, open_stored_file(actor=self.actor, file=file), file.name, sha256=file.sha256)
