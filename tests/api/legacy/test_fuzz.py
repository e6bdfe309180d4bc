"""2,000 requests made from the OpenAPI document: no 5xx, no answer that the document does not describe."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from clavier.accounts.models import Membership, User
from clavier.accounts.services import create_api_key
from clavier.config.wsgi import application
from clavier.core.actor import Actor
from tests.api.native.conftest import make_dataset, make_model

pytestmark = [pytest.mark.slow, pytest.mark.django_db, pytest.mark.timeout(600)]
REQUESTS = 2000
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def connection_kept() -> Iterator[None]:
    """The server's door closes connections after each request; the test's data is in a transaction of this one."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.usefixtures("connection_kept")
def test_every_answer_to_2000_requests_is_one_that_the_document_describes(
    alice: Actor, alice_user: User, node: None
) -> None:
    membership = Membership.objects.get(user=alice_user)
    _, secret = create_api_key(user=alice_user, tenant=membership.tenant, name="fuzz")
    headers = {"Authorization": f"Bearer {secret}"}
    make_model(alice)
    make_dataset(alice)
    schema = schemathesis.openapi.from_wsgi("/api/platform/schema?format=json", application)
    operations = [result.ok() for result in schema.get_all_operations()]
    each, statuses = -(-REQUESTS // len(operations)), Counter[int]()
    logging.disable(logging.ERROR)
    try:
        for operation in operations:
            send(operation, each, headers, statuses)
    finally:
        logging.disable(logging.NOTSET)
    assert sum(statuses.values()) >= REQUESTS
    assert min(statuses[200], statuses[400], statuses[404]) > 20, statuses


def send(operation: Any, number: int, headers: dict[str, str], statuses: Counter[int]) -> None:
    """That many generated requests of an operation; each answer is checked against the document."""

    @seed(1)
    @settings(
        max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def each(case: Any) -> None:
        statuses[case.call_and_validate(headers=headers, checks=CHECKS).status_code] += 1

    each()
