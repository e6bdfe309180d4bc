"""What an exception of any dialect's view means: a refusal in one form, or a failure of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.exceptions import (
    PermissionDenied,
    RequestDataTooBig,
    TooManyFieldsSent,
    TooManyFilesSent,
)
from django.http import Http404
from django.http.multipartparser import MultiPartParserError
from django.http.request import UnreadablePostError
from rest_framework import exceptions
from rest_framework.response import Response

from clavier.core.disk import is_disk_full
from clavier.core.errors import (
    DomainError,
    FieldProblem,
    Forbidden,
    Invalid,
    InvalidFields,
    NotAuthenticated,
    NotFound,
    StorageFull,
    TooLarge,
    quoted,
)

BUSY_RETRY_AFTER_S = 1
#: Our word for each of Django REST framework's own; words of our fields pass through unchanged.
WORDS = {
    "null": "required",
    "blank": "required",
    "empty": "required",
    "no_name": "required",
    "not_a_list": "wrong_type",
    "not_a_dict": "wrong_type",
    "invalid": "wrong_type",
    "invalid_choice": "not_a_choice",
    "max_length": "too_long",
    "min_length": "too_short",
    "min_value": "out_of_range",
    "max_value": "out_of_range",
    "date": "wrong_type",
    "make_aware": "bad_value",
    "overflow": "out_of_range",
    "surrogate_characters_not_allowed": "bad_value",
    "null_characters_not_allowed": "bad_value",
}


class MethodNotAllowed(DomainError):
    """The route exists, the method does not (405)."""

    status = 405
    default_code = "method_not_allowed"


class UnsupportedMediaType(DomainError):
    """The body is of a type that the route does not read (415)."""

    status = 415
    default_code = "unsupported_media_type"


class TooManyRequests(DomainError):
    """Asked too often (429)."""

    status = 429
    default_code = "too_many_requests"


def set_headers(response: Response, error: DomainError, exc: Exception) -> None:
    """The headers that go with a refusal: how to sign in, when to come back, what the exception itself brings."""
    if error.status == 401:
        response["WWW-Authenticate"] = 'Bearer realm="clavier"'
    if error.code == "busy":
        response["Retry-After"] = str(BUSY_RETRY_AFTER_S)
    for name, value in getattr(exc, "headers", {}).items():
        response[name] = value


def request_id(request: Any) -> str | None:
    """The id that the middleware gave to a request."""
    return getattr(request, "request_id", None)


def domain_error(exc: Exception, context: dict[str, Any]) -> DomainError | None:
    """The refusal that an exception stands for; None for a failure of ours."""
    if isinstance(exc, DomainError):
        return exc
    if isinstance(exc, exceptions.ValidationError):
        return InvalidFields(list(problems_of(exc.get_full_details())))
    if isinstance(exc, exceptions.APIException):
        return of_framework(exc, context)
    if isinstance(exc, Http404):
        return NotFound("There is no such object.")
    if isinstance(exc, PermissionDenied):
        return Forbidden("You may not do this.")
    if is_disk_full(exc):
        return StorageFull("The platform's disk is full; nothing was stored. Tell the operator, and try again later.")
    return of_body(exc)


def of_framework(exc: exceptions.APIException, context: dict[str, Any]) -> DomainError | None:
    """The refusal for an error that Django REST framework raises itself."""
    detail = str(exc.detail)
    if isinstance(exc, exceptions.NotAuthenticated | exceptions.AuthenticationFailed):
        return NotAuthenticated(detail)
    if isinstance(exc, exceptions.PermissionDenied):
        return Forbidden(detail, code="csrf_failed" if detail.startswith("CSRF") else None)
    if isinstance(exc, exceptions.MethodNotAllowed):
        allowed = ", ".join(context["view"].allowed_methods)
        return MethodNotAllowed(f"{context['request'].method} is not allowed here; {allowed} are.")
    if isinstance(exc, exceptions.UnsupportedMediaType):
        accepted = " or ".join(parser.media_type for parser in context["view"].parser_classes)
        given = context["request"].content_type
        return UnsupportedMediaType(f"Content-Type {quoted(given)} is not read here. Send {accepted}.")
    if isinstance(exc, exceptions.Throttled):
        return TooManyRequests(detail)
    if isinstance(exc, exceptions.NotFound):
        return NotFound(detail)
    if isinstance(exc, exceptions.ParseError):
        return Invalid(f"The body can not be read: {detail}", code="malformed_body")
    return None


def of_body(exc: Exception) -> DomainError | None:
    """The refusal for a body that Django could not take in."""
    if isinstance(exc, RequestDataTooBig):
        return TooLarge("The fields of the form are larger than 16 MiB; only files may be.")
    if isinstance(exc, TooManyFilesSent | TooManyFieldsSent):
        return Invalid("The form has too many parts; 10,000 files may come at once.", code="too_many_parts")
    if isinstance(exc, UnreadablePostError):
        return Invalid("The connection ended before the whole body had arrived.", code="client_disconnected")
    if isinstance(exc, MultiPartParserError):
        return Invalid(f"The form can not be read: {exc}", code="malformed_body")
    return None


def problems_of(details: Any, path: str = "", *, brackets: bool = False) -> Iterator[FieldProblem]:
    """Each problem in the nested details of a ValidationError, with its path such as ``resources.gpus``.

    ``brackets``: numbers in lists are written ``versions[0].name`` and not ``versions.0.name``.
    """
    if isinstance(details, dict) and set(details) == {"message", "code"} and isinstance(details["code"], str):
        field, code = path.removesuffix("."), details["code"]
        text = f"{field}: {details['message']}" if field else str(details["message"])
        yield FieldProblem(field, WORDS.get(code, code), text)
    elif isinstance(details, dict):
        for name, inner in details.items():
            # The framework files what concerns the whole body under this name.
            place = path if name == "non_field_errors" else _place(path, name, brackets)
            yield from problems_of(inner, place, brackets=brackets)
    elif isinstance(details, list):
        for number, inner in enumerate(details):
            is_leaf = not isinstance(inner, list) and set(inner) == {"message", "code"}
            if inner:
                yield from problems_of(inner, path if is_leaf else _place(path, number, brackets), brackets=brackets)


def _place(path: str, name: str | int, brackets: bool) -> str:
    """The path of what is under a name or at a number."""
    if brackets and isinstance(name, int):
        return f"{path.removesuffix('.')}[{name}]."
    return f"{path}{name}."
