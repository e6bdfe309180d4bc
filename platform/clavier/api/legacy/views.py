"""What every view of the dialect shares: language, identity, strict bodies, the envelope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import translation
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from clavier.api.common.json_body import StrictJsonParser
from clavier.api.common.negotiation import AlwaysJson
from clavier.api.legacy import errors
from clavier.api.legacy.envelopes import Envelope
from clavier.api.legacy.fields import Body
from clavier.api.legacy.identity import Person, person_of
from clavier.api.legacy.words import language_of
from clavier.core.actor import Actor


class LegacyView(APIView):
    """An endpoint: it translates, makes one service call, and decides nothing."""

    parser_classes: Sequence[type[BaseParser]] = (StrictJsonParser,)
    content_negotiation_class = AlwaysJson
    envelope: ClassVar[Envelope]
    #: A service's field -> the document's.
    field_names: dict[str, str] = {}
    person: Person

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """In the language of the request: Chinese unless it asks for English."""
        with translation.override(language_of(request.headers.get("Accept-Language", ""))):
            response = super().dispatch(request, *args, **kwargs)
            response["Content-Language"] = translation.get_language() or ""
        return response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Credentials, then whom the request is for."""
        super().initial(request, *args, **kwargs)
        self.person = person_of(request)

    def get_exception_handler(self) -> Any:
        """Failures in this dialect's envelopes."""
        return errors.handle

    @property
    def actor(self) -> Actor:
        """Who acts."""
        return self.person.actor

    def read(self, form: type[Body], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The checked fields of the body (or of ``data``). Raises ValidationError with all problems at once."""
        serializer = form(data=self.request.data if data is None else data, context={"person": self.person})
        serializer.is_valid(raise_exception=True)
        values: dict[str, Any] = serializer.validated_data
        return values

    def answer(self, data: Any, message: str) -> Response:
        """HTTP 200 in the envelope."""
        return Response(self.envelope.success(data, message))
