"""The parameter string of document 000: a literal, which is never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clavier.core.errors import Invalid
from datasets_app.literals import MAX_CHARACTERS, parameters_of_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'params1': 'value1', 'params2': 'value2'}", {"params1": "value1", "params2": "value2"}),
        ('{"rows": 3, "share": 0.5, "on": true, "style": null}', {"rows": 3, "share": 0.5, "on": True, "style": None}),
        ("\n{'rows': -3, 'on': True, 'style': None,}", {"rows": -3, "on": True, "style": None}),
        ("{'text': 'it\\'s \\d'}", {"text": "it's \\d"}),
        ("", {}),
        ("{}", {}),
    ],
)
def test_names_and_plain_values_are_read(text: str, value: dict[str, Any]) -> None:
    assert parameters_of_text(text) == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{'params1': 'value1', 'params2': 'value2}", "bad_literal"),
        ("{'a': open('/tmp/x', 'w')}", "bad_literal"),
        ("{'a': 2 ** 99999999}", "bad_literal"),
        ("{'a': (lambda: 1)()}", "bad_literal"),
        ("{**{'a': 1}}", "bad_literal"),
        ("{'a': " + "[" * 5000 + "]" * 5000 + "}", "bad_literal"),
        ("{'a': " + "-" * 60_000 + "1}", "bad_literal"),
        ("{'a': '\0'}\0", "bad_literal"),
        ("{'a': '\ud800'}\ud800", "bad_literal"),
        ("{" * 60, "bad_literal"),
        ("rows=3", "bad_literal"),
        ("['a', 'b']", "wrong_type"),
        ("'text'", "wrong_type"),
        ("{1: 'a'}", "wrong_type"),
        ("{'a': [1]}", "wrong_type"),
        ("{'a': b'x'}", "wrong_type"),
        ("{'a': 1j}", "wrong_type"),
        ("{'a': '" + "x" * MAX_CHARACTERS + "'}", "too_large"),
    ],
)
def test_whatever_else_it_holds_is_refused_in_words(text: str, code: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parameters_of_text(text)
    assert (refusal.value.code, refusal.value.field) == (code, "parameters")
    assert not Path("/tmp/x").exists()
