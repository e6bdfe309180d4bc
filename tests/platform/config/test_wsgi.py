"""The web process begins with what its first request needs."""

from __future__ import annotations

import gc
import importlib

import pytest
from django.urls import get_resolver


def test_the_pages_are_imported_before_memory_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    get_resolver().__dict__.pop("url_patterns", None)
    monkeypatch.setattr(gc, "freeze", lambda: seen.append("url_patterns" in get_resolver().__dict__))
    wsgi = importlib.import_module("clavier.config.wsgi")
    if not seen:  # another test had imported it
        importlib.reload(wsgi)
    assert seen == [True]
