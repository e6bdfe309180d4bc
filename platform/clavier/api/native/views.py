"""What every view of the native API shares: the actor, strict reading, pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers
from rest_framework.parsers import BaseParser
from rest_framework.response import Response
from rest_framework.views import APIView

from clavier.api.common.forms import WholeFormParser
from clavier.api.common.json_body import StrictJsonParser
from clavier.api.common.negotiation import AlwaysJson
from clavier.api.native.fields import Form, Nothing, Strict
from clavier.api.native.paging import PARAMETERS, CreatedCursor
from clavier.core.actor import Actor


class NativeView(APIView):
    """An endpoint: it translates, makes one service call, and decides nothing."""

    parser_classes: Sequence[type[BaseParser]] = (StrictJsonParser,)
    content_negotiation_class = AlwaysJson
    pagination_class: type[CreatedCursor] = CreatedCursor

    @property
    def actor(self) -> Actor:
        """Who asks, from the credential."""
        actor = self.request.auth
        assert isinstance(actor, Actor)  # HasTenant let the request pass
        return actor

    def body(self, form: type[Strict] = Nothing) -> dict[str, Any]:
        """The checked fields of the body. Raises ValidationError with all problems at once."""
        return checked(form, self.request.data)

    def query(self, form: type[Form] = Form) -> dict[str, Any]:
        """The checked query string. Raises ValidationError with all problems at once."""
        return checked(form, self.request.query_params)

    def filters(self, form: type[Form] = Form) -> dict[str, Any]:
        """The checked query string of a list, without what the pages read themselves."""
        parameters = self.request.query_params.copy()
        for name in PARAMETERS:
            parameters.pop(name, None)
        return checked(form, parameters)

    def page(
        self, rows: QuerySet[Any], item: type[serializers.BaseSerializer[Any]], pager: type[CreatedCursor] | None = None
    ) -> Response:
        """One page of rows."""
        pages = (pager or self.pagination_class)()
        found = pages.paginate_queryset(rows, self.request, view=self)
        return pages.get_paginated_response(item(found, many=True).data)


class FormView(NativeView):
    """An endpoint that takes files."""

    parser_classes = (WholeFormParser,)


def checked(form: type[Strict], data: Any) -> dict[str, Any]:
    """Validated values. Raises ValidationError."""
    serializer = form(data=data)
    serializer.is_valid(raise_exception=True)
    values: dict[str, Any] = serializer.validated_data
    return values
