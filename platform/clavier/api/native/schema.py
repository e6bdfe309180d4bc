"""How the OpenAPI document describes an endpoint: one decorator, so that none forgets its errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers

from clavier.api.common.idempotency import HEADER
from clavier.api.native.paging import DEFAULT_LIMIT, MAX_LIMIT

Handler = TypeVar("Handler", bound=Callable[..., Any])
#: A response that is bytes.
BINARY = OpenApiTypes.BINARY

_SAID = {
    400: "The request is not understood or a value is not allowed.",
    401: "No usable credentials.",
    403: "You may see it but not do this.",
    404: "There is no such object for you.",
    409: "The state of the object, or what refers to it, stands against it.",
    410: "It is no more.",
    412: "Another version of the protocol is asked for.",
    413: "The body is too large.",
    415: "The body is of another type.",
    416: "The range lies outside the file.",
    422: "This installation can not do it.",
    423: "Another request is writing to it.",
    429: "A limit is reached.",
    460: "The bytes are not those of the checksum.",
    507: "The disk or the storage quota is full.",
}
_PAGE_PARAMETERS = [
    OpenApiParameter("cursor", str, description="`next` or `previous` of a page, as it is."),
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        description="Items on the page.",
    ),
]
_IDEMPOTENCY = OpenApiParameter(
    HEADER,
    str,
    OpenApiParameter.HEADER,
    description="Any text of yours, a UUID for example. The same key with the same body within 24 hours does nothing "
    "again and answers the same, with the header Idempotent-Replay: true.",
)


class Problem(serializers.Serializer[Any]):
    """One bad field."""

    field = serializers.CharField(help_text="Path in the request: `resources.gpus`.")
    code = serializers.CharField(help_text="A stable machine word.")
    message = serializers.CharField()


class ErrorBody(serializers.Serializer[Any]):
    """What went wrong, and what to do next."""

    code = serializers.CharField(help_text="A stable machine word: `required`, `not_found`, `in_use` ...")
    message = serializers.CharField(help_text="A sentence for people.")
    field = serializers.CharField(allow_null=True, help_text="The field at fault, or null.")
    request_id = serializers.CharField(help_text="Tell it to the operator; the log has it.")
    problems = Problem(many=True, required=False, help_text="All bad fields, where there are several.")


class Error(serializers.Serializer[Any]):
    """Every failure."""

    error = ErrorBody()


def operation(
    operation_id: str,
    tag: str,
    summary: str,
    *,
    answer: Any = None,
    status: int = 200,
    body: Any = None,
    form: Any = None,
    raw: str | None = None,
    query: Any = None,
    page_of: type[serializers.BaseSerializer[Any]] | None = None,
    media_type: str = "application/json",
    errors: Sequence[int] = (),
    examples: Sequence[OpenApiExample] = (),
    parameters: Sequence[OpenApiParameter] = (),
    is_public: bool = False,
) -> Callable[[Handler], Handler]:
    """Document a handler; its docstring becomes the description.

    ``answer``, ``body`` (JSON), ``form`` (multipart), ``query``: serializers; ``raw``: type of a body that is bytes;
    ``page_of``: the answer is a page of these; ``errors``: statuses besides those that follow from the rest;
    ``is_public``: no credentials are needed.
    """

    def decorate(handler: Handler) -> Handler:
        is_idempotent = getattr(handler, "is_idempotent", False)
        reads = body or form or query or page_of or is_idempotent
        statuses = {*errors, *([400] if reads else []), *([413, 415] if body or form else [])}
        named = [*parameters, *([query] if query else []), *(_PAGE_PARAMETERS if page_of else [])]
        return extend_schema(
            operation_id=operation_id,
            tags=[tag],
            summary=summary,
            parameters=[*named, *([_IDEMPOTENCY] if is_idempotent else [])],
            request=_request(body, form, raw),
            responses=_responses(status, media_type, page_of, answer, {401, 403, *statuses}),
            examples=list(examples) or None,
            auth=[] if is_public else None,
        )(handler)

    return decorate


def listed(name: str, item: serializers.Field[Any, Any, Any, Any], **more: Any) -> Any:
    """The serializer of ``{"items": [...]}``, with further fields."""
    return inline_serializer(name, {"items": item, **more})


def _responses(status: int, media_type: str, page_of: Any, answer: Any, errors: set[int]) -> dict[Any, Any]:
    content = _page(page_of) if page_of else answer
    done = OpenApiResponse(content, "Done.") if content is None else content
    failures = {code: OpenApiResponse(Error, _SAID[code]) for code in sorted(errors)}
    return {status if content is None else (status, media_type): done, **failures}


def _request(body: Any, form: Any, raw: str | None) -> Any:
    given = {"application/json": body, "multipart/form-data": form, **({raw: BINARY} if raw else {})}
    return {media_type: fields for media_type, fields in given.items() if fields} or None


@cache  # one component for all lists of the same item
def _page(item: Any) -> Any:
    return inline_serializer(
        f"{item.__name__}Page",
        {
            "items": item(many=True),
            "next": serializers.CharField(allow_null=True, help_text="Send it as `cursor`; null at the end."),
            "previous": serializers.CharField(allow_null=True, help_text="Send it as `cursor`; null at the end."),
        },
    )
