"""Resumable uploads: tus 1.0.0 with creation, expiration, termination and checksum."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.refusals import UnsupportedMediaType
from clavier.api.native import tus
from clavier.api.native.fields import Flag, Strict, Text
from clavier.api.native.nouns.common import Owned
from clavier.api.native.nouns.files import File
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from clavier.core.errors import Invalid, quoted
from clavier.files.models import AREAS, MIB, ResumableUpload
from clavier.files.uploads import (
    access_upload,
    append,
    complete_upload,
    create_upload,
    delete_upload,
    offset_of,
    visible_uploads,
)

TAG = "uploads"


class Upload(Owned):
    """A file of which a part has come."""

    area = serializers.ChoiceField(AREAS)
    path = serializers.CharField(help_text="Where the file goes, relative to the area.")
    size_bytes = serializers.IntegerField(help_text="Of the whole file; counts against the quota already.")
    offset = serializers.SerializerMethodField(help_text="Bytes that are here; the next chunk starts there.")
    expires_at = serializers.DateTimeField(help_text="Removed then, unless more comes before.")

    @extend_schema_field(serializers.IntegerField())
    def get_offset(self, upload: ResumableUpload) -> int:
        """From the disk."""
        return offset_of(upload)


class Completion(Strict):
    sha256 = Text(default="", allow_blank=True, max_length=64, help_text="Of the whole file, in hexadecimal.")
    overwrite = Flag(default=False, help_text="Replace a file that exists.")


class TusView(NativeView):
    """Says on every answer which protocol it is."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """For clients that can send no PATCH and no DELETE, as the protocol demands."""
        instead = request.headers.get("X-HTTP-Method-Override", "").upper()
        if request.method == "POST" and instead in ("PATCH", "DELETE"):
            request.method = instead
        return super().dispatch(request, *args, **kwargs)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Errors, too."""
        response["Tus-Resumable"] = tus.VERSION
        return super().finalize_response(request, response, *args, **kwargs)

    def options(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Response:
        """What is spoken here."""
        told = {
            "Tus-Version": tus.VERSION,
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Max-Size": str(settings.MAX_UPLOAD_MIB * MIB),
            "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
        }
        return Response(status=204, headers=told)


class UploadsView(TusView):
    @operation("list_uploads", TAG, "List your open uploads", page_of=Upload)
    def get(self, request: Request) -> Response:
        """Newest first."""
        self.filters()
        return self.page(visible_uploads(self.actor), Upload)

    @operation("create_upload", TAG, "Begin an upload in parts", answer=Upload, status=201,
               errors=(400, 409, 412, 413, 429, 507), parameters=(tus.RESUMABLE, tus.LENGTH, tus.METADATA))  # fmt: skip
    def post(self, request: Request) -> Response:
        """Reserves its storage; `Location` says where the parts go."""
        tus.require_version(request)
        size_bytes, (metadata, said) = tus.read_bytes(request, "Upload-Length"), tus.read_metadata(request)
        upload = create_upload(
            actor=self.actor,
            size_bytes=size_bytes,
            area=said.get("area", "private"),
            folder=said.get("path", ""),
            name=said.get("filename", ""),
            sha256=tus.parse_sha256(said.get("sha256", "")),
            overwrite=parse_flag(said.get("overwrite", "false")),
            metadata=metadata,
        )
        headers = {"Location": f"/api/v1/uploads/{upload.pk}", **tus.headers_of(upload)}
        return Response(Upload(upload).data, status=201, headers=headers)


class UploadView(TusView):
    @operation("get_upload", TAG, "An open upload", answer=Upload, errors=(404, 410))
    def get(self, request: Request, upload_id: UUID) -> Response:
        """HEAD says the same in the headers of tus."""
        return Response(Upload(access_upload(self.actor, upload_id)).data)

    def head(self, request: Request, upload_id: UUID) -> Response:
        """Where to go on."""
        upload = access_upload(self.actor, upload_id)
        tus.require_version(request)
        told = {"Upload-Metadata": upload.metadata} if upload.metadata else {}
        return Response(headers={"Upload-Length": str(upload.size_bytes), **told, **tus.headers_of(upload)})

    @operation("append_to_upload", TAG, "Send the next part", status=204, raw=tus.CHUNK_TYPE,
               errors=(400, 404, 409, 410, 412, 413, 415, 423, 460, 507),
               parameters=(tus.RESUMABLE, tus.OFFSET, tus.CHECKSUM))  # fmt: skip
    def patch(self, request: Request, upload_id: UUID) -> Response:
        """Of a connection that breaks, what has come stays, unless the part has a checksum."""
        upload = access_upload(self.actor, upload_id)
        tus.require_version(request)
        if request.content_type != tus.CHUNK_TYPE:
            given = quoted(request.content_type, 60)
            raise UnsupportedMediaType(f"Content-Type {given} is not read here. Send {tus.CHUNK_TYPE}.")
        append(
            actor=self.actor,
            upload=upload,
            offset=tus.read_bytes(request, "Upload-Offset"),
            checksum=tus.read_checksum(request),
            body=request._request,  # the framework's own would be parsed
            length=tus.read_bytes(request, "Content-Length"),
        )
        return Response(status=204, headers=tus.headers_of(upload))

    @operation("delete_upload", TAG, "Give an upload up", status=204, errors=(404, 410, 412, 423),
               parameters=(tus.RESUMABLE,))  # fmt: skip
    def delete(self, request: Request, upload_id: UUID) -> Response:
        """Its bytes and its share of the quota are free again."""
        upload = access_upload(self.actor, upload_id)
        tus.require_version(request)
        delete_upload(actor=self.actor, upload=upload)
        return Response(status=204)


class CompleteUploadView(TusView):
    @operation("complete_upload", TAG, "Make the file of an upload that is all there", body=Completion, answer=File,
               errors=(404, 409, 410, 422, 423, 507))  # fmt: skip
    def post(self, request: Request, upload_id: UUID) -> Response:
        """Missing folders are made. With a wrong sha256 the upload starts again at offset 0."""
        upload, said = access_upload(self.actor, upload_id), self.body(Completion)
        file = complete_upload(
            actor=self.actor, upload=upload, sha256=tus.parse_sha256(said["sha256"]), overwrite=said["overwrite"]
        )
        return Response(File(file).data)


def parse_flag(text: str) -> bool:
    """Raises Invalid (``not_a_choice``)."""
    if text not in ("true", "false"):
        raise Invalid(
            f"overwrite {quoted(text, 40)} is neither true nor false.", code="not_a_choice", field="overwrite"
        )
    return text == "true"
