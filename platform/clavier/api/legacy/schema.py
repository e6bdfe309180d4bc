"""How the OpenAPI document of this dialect describes its operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers

from clavier.api.common.idempotency import HEADER
from clavier.api.legacy.envelopes import Envelope
from clavier.api.legacy.identity import ACT_AS

Handler = TypeVar("Handler", bound=Callable[..., Any])

_SAID = {
    400: "参数错误 / a value is not allowed",
    401: "未登录 / no usable credentials",
    403: "没有权限 / not allowed",
    404: "对象不存在 / no such object for you",
    405: "不支持的请求方法 / another method",
    409: "状态冲突 / the state of the object stands against it",
    413: "请求体过大 / the body is too large",
    415: "不支持的 Content-Type / the body is of another type",
    422: "当前环境无法完成 / this installation can not do it",
    429: "配额不足 / a limit is reached",
    507: "存储空间不足 / the disk or the storage quota is full",
}
_HEADERS = [
    OpenApiParameter(
        "Accept-Language", str, OpenApiParameter.HEADER, description="en: English messages; otherwise Chinese."
    ),
    OpenApiParameter(
        ACT_AS,
        str,
        OpenApiParameter.HEADER,
        description="管理员代其操作的用户 / the user for whom an operator acts.",
    ),
]
_IDEMPOTENCY = OpenApiParameter(
    HEADER, str, OpenApiParameter.HEADER, description="同一键与同一请求只执行一次 / the same key and body act once."
)


class Problem(serializers.Serializer[Any]):
    """One bad field."""

    field = serializers.CharField()
    error = serializers.CharField()
    message = serializers.CharField()


def operation(
    operation_id: str,
    tag: str,
    summary: str,
    envelope: Envelope,
    *,
    data: Any = None,
    body: Any = None,
    form: Any = None,
    media_types: Sequence[str] = ("application/json",),
    query: Any = None,
    errors: Sequence[int] = (),
    examples: Sequence[OpenApiExample] = (),
) -> Callable[[Handler], Handler]:
    """Document a handler; its docstring becomes the description. ``data``: what the payload is, None for null."""

    def decorate(handler: Handler) -> Handler:
        statuses = {400, 401, 403, *([413, 415] if body or form else []), *errors}
        is_idempotent = getattr(handler, "is_idempotent", False)
        request = {"multipart/form-data": form} if form else dict.fromkeys(media_types, body)
        return extend_schema(
            operation_id=operation_id,
            tags=[tag],
            summary=summary,
            parameters=[*_HEADERS, *([query] if query else []), *([_IDEMPOTENCY] if is_idempotent else [])],
            request=request if body or form else None,
            responses={
                200: success_of(operation_id, envelope, data),
                **{code: OpenApiResponse(failure_of(envelope), _SAID[code]) for code in sorted(statuses)},
            },
            examples=list(examples) or None,
        )(handler)

    return decorate


def success_of(operation_id: str, envelope: Envelope, data: Any) -> Any:
    """The serializer of an answer."""
    nothing = serializers.JSONField(allow_null=True, help_text="null")
    return inline_serializer(f"{operation_id}Answer", {**shared_fields(envelope), envelope.payload: data or nothing})


def failure_of(envelope: Envelope) -> Any:
    """The serializer of a failure."""
    name = "".join(code.capitalize() for code in envelope.codes) + "Failure"
    if name not in _FAILURES:
        _FAILURES[name] = inline_serializer(
            name,
            {
                **shared_fields(envelope),
                envelope.payload: serializers.JSONField(allow_null=True, help_text="null"),
                "error": serializers.CharField(help_text="A stable machine word."),
                "field": serializers.CharField(allow_null=True),
                "request_id": serializers.CharField(),
                "problems": Problem(many=True, required=False),
            },
        )
    return _FAILURES[name]


def shared_fields(envelope: Envelope) -> dict[str, Any]:
    """What every answer in the envelope has."""
    return {
        "success": serializers.BooleanField(help_text="接口处理请求是否成功"),
        **{code: serializers.IntegerField(help_text="返回码") for code in envelope.codes},
        "message": serializers.CharField(help_text="返回消息", allow_blank=True),
    }


#: One component for all operations of an envelope.
_FAILURES: dict[str, Any] = {}
