"""Every failure in the envelope of its route: real HTTP status, ``success: false``, error, field, request_id."""

from __future__ import annotations

import logging
import re
from typing import Any, TypeVar

from rest_framework import exceptions
from rest_framework.response import Response

from clavier.api.common.refusals import domain_error, problems_of, request_id, set_headers
from clavier.api.legacy.words import say, translated
from clavier.audit.records import record
from clavier.core.errors import DomainError, FieldProblem, Forbidden, InvalidFields

logger = logging.getLogger(__name__)

IDENTITY_MISMATCH = "identity_mismatch"
#: In ``field_names``: what a request names when it names one object only, so a refusal without a field means it.
NOTHING_ELSE = ""
Refusal = TypeVar("Refusal", bound=DomainError)


def spoken(error: Refusal) -> Refusal:
    """Mark an error whose message is in the language of the request already."""
    error.is_spoken = True  # type: ignore[attr-defined]
    return error


def handle(exc: Exception, context: dict[str, Any]) -> Response:
    """The answer to any exception of a view; what nobody foresaw is logged and answered as a 500."""
    request, view = context["request"], context["view"]
    error = refusal_of(exc, context)
    if error is None:
        logger.error("request %s failed: %s %s", request_id(request), request.method, request.path, exc_info=exc)
        message = say(
            "系统内部错误，请稍后再试；如仍失败，请将 request_id 告知管理员", "The platform failed to answer."
        )
        details: dict[str, Any] = {"error": "internal", "field": None, "request_id": request_id(request)}
        return Response(view.envelope.failure(500, message, details), status=500)
    problems = problems_in(error)
    if not getattr(error, "is_spoken", False):
        problems = [FieldProblem(p.field, p.code, translated(p.code, p.message)) for p in problems]
    problems = [renamed(problem, view.field_names) for problem in problems]
    first = problems[0]
    details = {"error": first.code, "field": first.field or None, "request_id": request_id(request)}
    if len(problems) > 1:
        details["problems"] = [{"field": p.field, "error": p.code, "message": p.message} for p in problems]
    message = say("；", " ").join(problem.message for problem in problems)
    response = Response(view.envelope.failure(error.status, message, details), status=error.status)
    set_headers(response, error, exc)
    return response


def refusal_of(exc: Exception, context: dict[str, Any]) -> DomainError | None:
    """The refusal that an exception stands for; a body that names another user is one of its own."""
    if not isinstance(exc, exceptions.ValidationError):
        return domain_error(exc, context)
    problems = list(problems_of(exc.get_full_details(), brackets=True))
    foreign = next((problem for problem in problems if problem.code == IDENTITY_MISMATCH), None)
    if foreign is not None:
        user = context["request"].user
        if user.is_staff:
            record(user, IDENTITY_MISMATCH, path=context["request"].path, field=foreign.field)
        return spoken(Forbidden(foreign.message, code=IDENTITY_MISMATCH, field=foreign.field))
    return spoken(InvalidFields(problems))


def problems_in(error: DomainError) -> list[FieldProblem]:
    """The problems of an error, at least one."""
    return list(error.problems) or [FieldProblem(error.field or "", error.code, error.message)]


def renamed(problem: FieldProblem, names: dict[str, str]) -> FieldProblem:
    """A problem whose field has the name that the client knows; the message names it too."""
    field, known, rest = problem.field, problem.field, ""
    while known and known not in names:
        known, _, last = known.rpartition(".")
        rest = f".{last}{rest}"
    if known:
        field = names[known] + rest
    elif not field and problem.code == "not_found":
        field = names.get(NOTHING_ELSE, "")
    message = problem.message.removeprefix(f"{problem.field.partition('.')[0]}{say('：', ': ')}")
    spoken_of = named_first(message, problem.field)
    if spoken_of and not message.startswith(field):
        said = message[len(spoken_of) :]
        name = problem.field.removeprefix("hyperparameters.")
        # A place in a list does not say which hyperparameter stands there.
        is_listed = name != problem.field and field.endswith("]")
        message = say(f"{field}：{name}{said}", f"{field}: {name}{said}") if is_listed else field + said
    elif field and field not in message:
        message = say(f"{field}：{message}", f"{field}: {message}")
    return FieldProblem(field, problem.code, message)


def named_first(message: str, field: str) -> str:
    """The name of the field that a message begins with, whole or without what it lies in; empty when with neither."""
    parts = field.split(".")
    for at in range(len(parts)):
        name = ".".join(parts[at:])
        if name and re.match(rf"{re.escape(name)}(?![\w.\[])", message, re.ASCII):
            return name
    return ""
