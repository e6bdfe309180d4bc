"""2. 镜像管理: register an image, then import an uploaded archive as one of its tags."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.legacy.envelopes import IMAGES
from clavier.api.legacy.errors import spoken
from clavier.api.legacy.fields import Body, Id, Place, UserIs, Word, Words
from clavier.api.legacy.paths import location_of
from clavier.api.legacy.schema import operation
from clavier.api.legacy.views import LegacyView
from clavier.api.legacy.words import say
from clavier.core.actor import Actor
from clavier.core.errors import Invalid, NotFound, quoted
from clavier.files.folders import own_row
from clavier.images.access import access_image, usable_images
from clavier.images.models import ContainerImage
from clavier.images.services import import_image_archive, register_image

TAG = "2 镜像管理"


class NewImage(Body):
    imageName = Word(required=True, max_length=200, help_text="镜像名称，可含 /，例如 dzq/45")
    imageIcon = Word(max_length=200, help_text="镜像图标选择")
    imageOverView = Word(max_length=500, help_text="镜像综述")
    imageLabel = Words(help_text="镜像分类")
    imageDescribe = Word(help_text="镜像描述")
    userId = UserIs(help_text="用户ID；不填为本人")


class ImportBody(Body):
    fileUrl = Place(required=True, help_text="个人文件中镜像包的路径，例如 dzq/aios-busybox.tar")
    imageId = Id(help_text="镜像ID；或填写 imageName")
    imageName = Words(help_text="镜像名称（字符串或列表）；与 imageId 二选一，同时填写时须一致")
    imageTag = Word(default="latest", max_length=128, help_text="镜像标签，默认 latest")
    userId = UserIs(help_text="用户ID；不填为本人")


class ImageCreated(serializers.Serializer[Any]):
    """What a client needs to find the image again."""

    imageId = serializers.CharField()
    imageName = serializers.CharField()


class ImportStarted(ImageCreated):
    """What a client needs to find the import again."""

    imageTag = serializers.CharField()
    imageVersionId = serializers.CharField()
    status = serializers.CharField(help_text="importing, ready, failed")


class ImageView(LegacyView):
    """Base of the views on images."""

    envelope = IMAGES


class RegisterImageView(ImageView):
    field_names = {
        "name": "imageName", "icon": "imageIcon", "overview": "imageOverView", "description": "imageDescribe",
        "labels": "imageLabel",
    }  # fmt: skip

    @operation("uploadImage", TAG, "2.1 新增镜像", IMAGES, body=NewImage, data=ImageCreated(), errors=(409,))
    @idempotent()
    def post(self, request: Request) -> Response:
        """A named image without any content yet."""
        values = self.read(NewImage)
        image = register_image(
            actor=self.actor,
            name=values["imageName"],
            icon=values.get("imageIcon", ""),
            overview=values.get("imageOverView", ""),
            description=values.get("imageDescribe", ""),
            labels=values.get("imageLabel", []),
        )
        return self.answer(created_of(image), say("新增镜像成功", "The image was registered."))


class ImportImageView(ImageView):
    field_names = {"tag": "imageTag", "file": "fileUrl", "image": "imageId", "name": "imageName"}

    @operation("uploadOldImage", TAG, "2.2 上传镜像", IMAGES, body=ImportBody, data=ImportStarted(),
               errors=(404, 409, 507))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Starts the import and answers at once; GET /api/v1/images tells how it goes."""
        values = self.read(ImportBody)
        file = own_row(self.actor, location_of(values["fileUrl"], field="fileUrl") or "/", field="fileUrl")
        image = image_of(self.actor, values)
        version = import_image_archive(actor=self.actor, image=image, tag=values["imageTag"] or "latest", file=file)
        started = {"imageTag": version.tag, "imageVersionId": str(version.pk), "status": version.state}
        return self.answer({**created_of(image), **started}, say("镜像开始上传", "The import has started."))


def image_of(actor: Actor, values: dict[str, Any]) -> ContainerImage:
    """The image by its id or name. Raises Invalid, NotFound."""
    names = values.get("imageName") or []
    if values.get("imageId"):
        image = access_image(actor, values["imageId"], field="imageId")
        if names and names != [image.name]:
            message = say(
                f"imageName 与 imageId 不一致，该镜像的名称是 {image.name}；只填写其中之一即可",
                f"imageName is not the name of imageId, which is {image.name}; one of the two is enough.",
            )
            raise spoken(Invalid(message, code="conflicting_fields", field="imageName"))
        return image
    if len(names) != 1:
        message = say("imageId 与 imageName 须填写一个", "imageId: give the image's id, or its name as imageName.")
        raise spoken(Invalid(message, code="required", field="imageId"))
    found = usable_images(actor).filter(name=names[0], tenant_id=actor.tenant_id).first()
    if found is None:
        message = say(f"imageName: 没有镜像 {quoted(names[0])}", f"imageName: there is no image {quoted(names[0])}.")
        raise spoken(NotFound(message, field="imageName"))
    return found


def created_of(image: ContainerImage) -> dict[str, Any]:
    """The answer to a registration."""
    return {"imageId": str(image.pk), "imageName": image.name}
