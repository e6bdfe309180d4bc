"""What a model version declares to be settable."""

from __future__ import annotations

import pytest

from clavier.core.errors import Invalid, InvalidFields
from models_app.declarations import checked_declarations, with_declared

DECLARED = [
    {"name": "learning_rate", "type": "float", "value": "1e-4", "range": [0, 1]},
    {"name": "top_k", "type": "int", "value": 5, "range": [1, 10], "is_editable": False},
    {"name": "mode", "type": "str", "value": "fast", "range": ["fast", "exact"]},
    {"name": "stream", "type": "bool", "value": "true"},
    {"name": "note"},
]


def test_declared_defaults_fill_what_is_not_given():
    declared = checked_declarations(DECLARED)
    assert with_declared(declared, {"mode": "exact", "other": "x"}) == {
        "learning_rate": 1e-4, "top_k": 5, "mode": "exact", "stream": True, "other": "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"learning_rate": 2}, "out_of_range"),
        ({"learning_rate": "fast"}, "wrong_type"),
        ({"top_k": 6}, "not_settable"),
        ({"top_k": 11}, "out_of_range"),
        ({"mode": "slow"}, "not_a_choice"),
    ],
)
def test_values_outside_of_what_is_declared_are_refused(given, code):
    with pytest.raises(InvalidFields) as refusal:
        with_declared(checked_declarations(DECLARED), given)
    assert refusal.value.code == code
    assert with_declared(checked_declarations(DECLARED), {"top_k": "5"})["top_k"] == "5"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([{"name": "--x"}], "bad_name"),
        ([{"name": "x", "type": "tensor"}], "not_a_choice"),
        ([{"name": "x", "type": "int", "range": [3, 1]}], "wrong_type"),
        ([{"name": "x", "type": "int", "value": 9, "range": [1, 3]}], "out_of_range"),
        ([{"name": "x", "colour": 1}], "wrong_type"),
        ([{"name": "x"}, {"name": "x"}], "duplicate_key"),
        (["x"], "wrong_type"),
        ([{"name": f"x{n}"} for n in range(101)], "too_many"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(given, code):
    with pytest.raises(Invalid) as refusal:
        checked_declarations(given)
    assert refusal.value.code == code
