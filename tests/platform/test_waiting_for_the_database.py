"""`manage.py up` beside a database server that is still starting."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management.base import CommandError, OutputWrapper
from django.db import OperationalError

from clavier.management.commands import up


@pytest.fixture
def out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(up.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(up.time, "monotonic", lambda: now[0])
    return OutputWrapper(StringIO())


def test_a_database_that_is_being_started_is_waited_for(out, monkeypatch):
    answers = [OperationalError("Connection refused\nIs the server running?"), OperationalError("starting up"), None]

    def prepare(_: OutputWrapper) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(up, "prepare", prepare)
    up.prepare_patiently(out)
    assert answers == []
    assert out.getvalue().splitlines() == [
        "The database does not answer yet (Connection refused); trying again.",
        "The database does not answer yet (starting up); trying again.",
    ]


def test_a_database_that_never_answers_is_said_after_a_minute(out, monkeypatch):
    def prepare(_: OutputWrapper) -> None:
        raise OperationalError("Connection refused")

    monkeypatch.setattr(up, "prepare", prepare)
    with pytest.raises(CommandError, match="The database does not answer: Connection refused"):
        up.prepare_patiently(out)
    assert out.getvalue().count("trying again") == 61
