"""1. 文件/数据上传: into the user's private and public area; the path of a folder upload is kept."""

from __future__ import annotations

from typing import Any

from django.core.files.uploadedfile import UploadedFile
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.legacy.envelopes import FILES
from clavier.api.legacy.errors import spoken
from clavier.api.legacy.fields import Body, Place, UserIs, YesNo
from clavier.api.legacy.paths import own_path
from clavier.api.legacy.schema import operation
from clavier.api.legacy.uploads import SENT_NAME, FolderFormParser
from clavier.api.legacy.views import LegacyView
from clavier.api.legacy.words import said, say
from clavier.core.errors import Invalid, quoted
from clavier.files.names import parse_file_name
from clavier.files.services import upload_files

TAG = "1 文件/数据上传"
_MISSING = said("必填；每个文件须有文件名 (filename)", "this field is required; each file needs a filename.")


class SentFile(serializers.FileField):
    """A file; a part without a filename is none."""

    default_error_messages = {"required": _MISSING}

    def to_internal_value(self, data: Any) -> UploadedFile[Any]:
        """Raises ValidationError (``required``)."""
        if not isinstance(data, UploadedFile):
            self.fail("required")
        return data


class Upload(Body):
    """The form."""

    file = serializers.ListField(
        child=SentFile(allow_empty_file=True),
        allow_empty=False,
        error_messages={"required": _MISSING, "empty": _MISSING},
        help_text="要上传的文件；文件名可带目录，例如 train/a.jsonl / the file; its name may have folders in it",
    )
    currentPath = Place(default="", help_text="当前路径，不存在时自动创建 / the folder, made when it is missing")
    overwrite = YesNo(default=False, help_text="是否覆盖同名文件 / replace a file of that name")


class PublicUpload(Upload):
    """The form of the public area."""

    publicUserId = UserIs(help_text="用户ID；不填为本人 / the user; absent: yourself")


class UploadView(LegacyView):
    """Base of both uploads."""

    parser_classes = (FolderFormParser,)
    envelope = FILES
    field_names = {"name": "filename", "folder": "currentPath"}

    def store(self, form: type[Body], area: str) -> Response:
        """Read the form, store its files, all or none."""
        values = self.read(form)
        folder = own_path(values["currentPath"], field="currentPath")
        uploads = [(f"{folder}/{sent_name(upload)}".lstrip("/"), upload) for upload in values["file"]]
        upload_files(actor=self.actor, area=area, folder="", uploads=uploads, overwrite=values["overwrite"])
        return self.answer(None, say("文件上传成功", "The file was uploaded."))


class PrivateUploadView(UploadView):
    @operation("uploadFolder", TAG, "1.1 私有文件上传", FILES, form=Upload, errors=(409, 507))
    def post(self, request: Request) -> Response:
        """Into the caller's private area; several files may come in one form."""
        return self.store(Upload, "private")


class PublicUploadView(UploadView):
    @operation("uploadPublicFolder", TAG, "1.2 公共文件上传", FILES, form=PublicUpload, errors=(409, 507))
    def post(self, request: Request) -> Response:
        """Into the caller's public area, which every member of the tenant reads."""
        return self.store(PublicUpload, "public")


def sent_name(upload: UploadedFile[Any]) -> str:
    """The name as it was sent, with the folders in it. Raises Invalid."""
    name: str = getattr(upload, SENT_NAME, None) or upload.name or ""
    parts = name.split("/")
    if "\\" in name or any(part in ("", ".", "..") for part in parts):
        message = say(
            f"filename {quoted(name)} 不是合法的文件名；目录须为相对路径，例如 train/a.jsonl",
            f"filename {quoted(name)} is no name of a file; folders in it are relative, such as train/a.jsonl.",
        )
        raise spoken(Invalid(message, code="bad_name", field="filename"))
    return "/".join([*parts[:-1], parse_file_name(parts[-1], field="filename")])
