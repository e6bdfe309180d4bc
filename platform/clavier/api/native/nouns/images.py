"""Container images and their versions."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import Flag, Form, Identifier, Strict, Text, Words
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from clavier.images.access import access_image, access_image_version
from clavier.images.logins import RegistryLogin
from clavier.images.models import SOURCES, STATES, ImageVersion
from clavier.images.queries import visible_images, visible_versions
from clavier.images.services import (
    cancel_image_import,
    delete_image,
    delete_image_version,
    import_image_archive,
    import_image_from_registry,
    register_image,
    share_image,
    update_image,
)
from clavier.runs.queries import progress

_NAME_HELP = "Lower case, in parts: `dzq/45`. Unique in the tenant."


class ContainerImage(Owned):
    """A named image; what runs use are its versions, one for each tag."""

    name = serializers.CharField(help_text=_NAME_HELP)
    icon = serializers.CharField()
    overview = serializers.CharField()
    description = serializers.CharField()
    labels = serializers.ListField(child=serializers.CharField())
    is_public = serializers.BooleanField(help_text="Shared with all tenants by an operator.")


class ContainerImageItem(ContainerImage):
    """An image in a list."""

    num_versions = serializers.IntegerField()


class ImageLayer(serializers.Serializer[Any]):
    """One layer, unpacked."""

    diff_id = serializers.CharField(help_text="sha256 of its tar.")
    size_bytes = serializers.IntegerField()


class ImageVersionItem(Owned):
    """What one tag of an image stands for."""

    image = Reference()
    tag = serializers.CharField()
    name = serializers.CharField(source="__str__", help_text="`image:tag`.")
    state = serializers.ChoiceField(STATES, help_text="Only a ready version can be used.")
    message = serializers.CharField(help_text="Why the import failed.")
    error = serializers.CharField(help_text="The same as a machine word: `bad_image`, `wrong_architecture` ...")
    source = serializers.ChoiceField(SOURCES)  # type: ignore[assignment]
    location = serializers.CharField(help_text="The file, or the reference on the registry.")
    run_id = serializers.UUIDField(allow_null=True, help_text="The run that imports it.")
    content_id = serializers.CharField(help_text="What engines call the image: sha256 of its configuration.")
    digest = serializers.CharField(help_text="What the registry calls it.")
    size_bytes = serializers.IntegerField(help_text="Of the archive; counts as storage of who imported it.")
    architecture = serializers.CharField()
    os = serializers.CharField()


class ImageVersionDetail(ImageVersionItem):
    """A version with what its configuration says and, while it is imported, the progress."""

    user = serializers.CharField(help_text="What the image asks for; the platform gives its own.")
    entrypoint = serializers.ListField(child=serializers.CharField())
    cmd = serializers.ListField(child=serializers.CharField())
    env_names = serializers.ListField(child=serializers.CharField())
    exposed_ports = serializers.ListField(child=serializers.CharField())
    layers = ImageLayer(many=True)
    warnings = serializers.ListField(child=serializers.CharField(), help_text="What of the image is not used.")
    import_progress = serializers.SerializerMethodField(help_text="Newest phase and progress; empty when ended.")

    def get_import_progress(self, version: ImageVersion) -> dict[str, Any]:
        """Read from the run's folder."""
        return progress(version.run_id) if version.state == "importing" and version.run_id else {}


class ImageFilters(Form):
    search = Text(default="", allow_blank=True, max_length=200, help_text="Text in the name, overview or description.")


class NewImage(Strict):
    name = Text(max_length=200, help_text=_NAME_HELP)
    icon = Text(required=False, allow_blank=True, max_length=200)
    overview = Text(required=False, allow_blank=True, max_length=500)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    labels = Words(required=False)


class ChangedImage(Strict):
    name = Text(required=False, max_length=200, help_text=_NAME_HELP)
    icon = Text(required=False, allow_blank=True, max_length=200)
    overview = Text(required=False, allow_blank=True, max_length=500)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    labels = Words(required=False)


class SharedImage(Strict):
    is_public = Flag(help_text="true: all tenants may use it.")


class ArchiveImport(Strict):
    tag = Text(max_length=128)
    file = Identifier(
        help_text="Id of an uploaded archive: what `docker save` writes, or an OCI layout; plain or gzip."
    )


class RegistryImport(Strict):
    tag = Text(max_length=128)
    reference = Text(max_length=400, help_text="`host:port/team/name:tag` or `...@sha256:...`.")
    username = Text(required=False, max_length=200, help_text="Where the registry wants a login.")
    password = Text(required=False, max_length=4000, help_text="Kept until the import has ended, and nowhere else.")


class ImagesView(NativeView):
    @operation("list_images", "images", "List container images", query=ImageFilters, page_of=ContainerImageItem)
    def get(self, request: Request) -> Response:
        """The tenant's own and those shared with all, newest first."""
        return self.page(visible_images(self.actor, **self.filters(ImageFilters)), ContainerImageItem)

    @operation("register_image", "images", "Register a container image", body=NewImage, answer=ContainerImage,
               status=201, errors=(409,), examples=(
                   OpenApiExample("An image", {"name": "dzq/45", "labels": ["训练"]}, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """A name only; tags are imported into it."""
        return Response(ContainerImage(register_image(actor=self.actor, **self.body(NewImage))).data, status=201)


class ImageView(NativeView):
    @operation("get_image", "images", "A container image", answer=ContainerImage, errors=(404,))
    def get(self, request: Request, image_id: UUID) -> Response:
        """Its versions have a list of their own."""
        return Response(ContainerImage(access_image(self.actor, image_id)).data)

    @operation("change_image", "images", "Change name, texts or labels of an image", body=ChangedImage,
               answer=ContainerImage, errors=(404, 409))  # fmt: skip
    def patch(self, request: Request, image_id: UUID) -> Response:
        """What is absent stays."""
        image = access_image(self.actor, image_id)
        return Response(ContainerImage(update_image(actor=self.actor, image=image, **self.body(ChangedImage))).data)

    @operation("delete_image", "images", "Delete an image with all its tags", status=204, errors=(404, 409))
    def delete(self, request: Request, image_id: UUID) -> Response:
        """Refused while something refers to a version."""
        delete_image(actor=self.actor, image=access_image(self.actor, image_id))
        return Response(status=204)


class ShareImageView(NativeView):
    @operation("share_image", "images", "Share an image with all tenants (operators)", body=SharedImage,
               answer=ContainerImage, errors=(404,))  # fmt: skip
    def post(self, request: Request, image_id: UUID) -> Response:
        """What uses it already keeps it when it is no longer shared."""
        image = access_image(self.actor, image_id)
        return Response(ContainerImage(share_image(actor=self.actor, image=image, **self.body(SharedImage))).data)


class ImageVersionsView(NativeView):
    @operation("list_image_versions", "images", "List the tags of an image", page_of=ImageVersionItem, errors=(404,))
    def get(self, request: Request, image_id: UUID) -> Response:
        """Newest first."""
        self.filters()
        image = access_image(self.actor, image_id)
        return self.page(visible_versions(self.actor, image), ImageVersionItem)


class ImportArchiveView(NativeView):
    @operation("import_image_archive", "images", "Import a tag from an uploaded archive", body=ArchiveImport,
               answer=ImageVersionDetail, status=201, errors=(404, 409, 422, 507))  # fmt: skip
    @idempotent()
    def post(self, request: Request, image_id: UUID) -> Response:
        """Answers at once; the version is ready, or failed with the reason, once its run has ended."""
        image = access_image(self.actor, image_id)
        version = import_image_archive(actor=self.actor, image=image, **self.body(ArchiveImport))
        return Response(ImageVersionDetail(version).data, status=201)


class ImportFromRegistryView(NativeView):
    @operation("import_image_from_registry", "images", "Import a tag from a registry", body=RegistryImport,
               answer=ImageVersionDetail, status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("With a login", {"tag": "2.4", "reference": "registry.example:5000/team/train:2.4",
                                                   "username": "robot", "password": "..."}, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request, image_id: UUID) -> Response:
        """Answers at once. Registries on private addresses are refused unless the operator allows them."""
        given = self.body(RegistryImport)
        version = import_image_from_registry(
            actor=self.actor,
            image=access_image(self.actor, image_id),
            tag=given["tag"],
            reference=given["reference"],
            login=login_of(given),
        )
        return Response(ImageVersionDetail(version).data, status=201)


class ImageVersionView(NativeView):
    @operation("get_image_version", "images", "A version with its configuration and import progress",
               answer=ImageVersionDetail, errors=(404,))  # fmt: skip
    def get(self, request: Request, version_id: UUID) -> Response:
        """What it is and where it came from."""
        return Response(ImageVersionDetail(access_image_version(self.actor, version_id)).data)

    @operation("delete_image_version", "images", "Delete a tag and its archive", status=204, errors=(404, 409))
    def delete(self, request: Request, version_id: UUID) -> Response:
        """Refused while something refers to it."""
        delete_image_version(actor=self.actor, version=access_image_version(self.actor, version_id))
        return Response(status=204)


class CancelImageImportView(NativeView):
    @operation("cancel_image_import", "images", "Stop the import of a version", body=None, answer=ImageVersionDetail,
               errors=(400, 404, 409))  # fmt: skip
    def post(self, request: Request, version_id: UUID) -> Response:
        """The version becomes failed once the import has stopped."""
        self.body()
        version = access_image_version(self.actor, version_id)
        cancel_image_import(actor=self.actor, version=version)
        return Response(ImageVersionDetail(access_image_version(self.actor, version_id)).data)


def login_of(given: dict[str, Any]) -> RegistryLogin | None:
    """The login of a request; None where neither part is given."""
    if not given.get("username") and not given.get("password"):
        return None
    return RegistryLogin(given.get("username", ""), given.get("password", ""))
