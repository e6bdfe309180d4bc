"""A user's command is words, never a shell's."""

from __future__ import annotations

import pytest

from clavier.core.errors import Invalid, InvalidFields
from clavier.runs.commands import (
    MAX_COMMAND_CHARACTERS,
    check_placeholders,
    checked_environment,
    checked_hyperparameters,
    fill,
    split_command,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python train.py", ("python", "train.py")),
        ("  python  train.py  ", ("python", "train.py")),
        ("python train.py \\\n  --lr 1e-4", ("python", "train.py", "--lr", "1e-4")),
        ("echo 'a | b' \"c > d\" e\\&f", ("echo", "a | b", "c > d", "e&f")),
        ("echo 'two\nlines'", ("echo", "two\nlines")),
        ("echo $(touch /tmp/canary) `id` $HOME", ("echo", "$(touch", "/tmp/canary)", "`id`", "$HOME")),
        ("python a.py; rm -rf /", ("python", "a.py;", "rm", "-rf", "/")),
        ("python 训练.py #x", ("python", "训练.py", "#x")),
    ],
)
def test_words_are_split_by_quotes_and_blanks_alone(text, words):
    assert split_command(text) == words


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", "required", "command"),
        ("  \n ", "required", "command"),
        ("''", "required", "command"),
        ("a\0b", "bad_value", "NUL"),
        ("x" * (MAX_COMMAND_CHARACTERS + 1), "too_long", "8,192"),
        ("python 'train.py", "bad_value", "No closing quotation"),
        ("python a.py | tee log", "bad_value", "script in the working folder"),
        ("python a.py > log", "bad_value", "the shell's >"),
        ("a&&b", "bad_value", "the shell's &&"),
        ("a\nb", "bad_value", "a second line"),
    ],
)
def test_what_needs_a_shell_is_refused_in_words(text, code, said):
    with pytest.raises(Invalid, match=said) as refusal:
        split_command(text)
    assert (refusal.value.code, refusal.value.field) == (code, "command")


def test_a_value_fills_one_word_whatever_it_holds():
    words = split_command("run --out=${output_dir}/x ${lr} ${lr}${lr} ${unknown} $lr")
    filled = fill(words, {"output_dir": "/o p", "lr": "$(touch /tmp/canary)`id`;|& ${output_dir}"})
    assert filled[1] == "--out=/o p/x"
    assert filled[2] == "$(touch /tmp/canary)`id`;|& ${output_dir}"
    assert filled[4:] == ("${unknown}", "$lr")


def test_an_unknown_placeholder_is_named_with_those_there_are():
    with pytest.raises(Invalid, match=r"\$\{output\}.*not known.*\$\{output_dir\}") as refusal:
        check_placeholders(("${output}",), ["output_dir"])
    assert refusal.value.code == "unknown_placeholder"
    with pytest.raises(Invalid, match="give its folder or version"):
        check_placeholders(("${model_dir}",), ["output_dir"])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"": "x"}, "bad_name"),
        ({"a b": "x"}, "bad_name"),
        ({"A=B": "x"}, "bad_name"),
        ({"A": "x\0y"}, "bad_value"),
        ({"A": ["x"]}, "wrong_type"),
        ({"A": True}, "wrong_type"),
        ({"A": "x" * 2**20}, "too_many"),
        ({f"A{n}": "" for n in range(1000)}, "too_many"),
        ({"FTP_ATTEMPT_ID": "1"}, "reserved_name"),
        ({"CLAVIER_HOME": "1"}, "reserved_name"),
        ({"LD_PRELOAD": "x.so"}, "reserved_name"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, "reserved_name"),
        ({"PYTHONPATH": "/"}, "reserved_name"),
        ({"PATH": "/"}, "reserved_name"),
    ],
)
def test_variables_that_are_none_or_the_platforms_are_refused(given, code):
    with pytest.raises(Invalid) as refusal:
        checked_environment(given)
    assert refusal.value.code == code
    assert "environment" in refusal.value.message


def test_every_bad_variable_is_named_at_once():
    with pytest.raises(InvalidFields) as refusal:
        checked_environment({"LD_PRELOAD": "x", "a b": "y", "GOOD": "z", "NUMBER": 1})
    assert {problem.code for problem in refusal.value.problems} == {"reserved_name", "bad_name"}
    assert checked_environment({"GOOD": "$(id)", "NUMBER": 1}) == {"GOOD": "$(id)", "NUMBER": "1"}


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"--output_dir=/etc": "x"}, "bad_name", "--output_dir"),
        ({"output_dir": "x"}, "not_settable", "output_dir"),
        ({"learning_rate": "1e-4\n--report_to x"}, "bad_value", "learning_rate"),
        ({"learning_rate": None}, "wrong_type", "learning_rate"),
        ({"learning_rate": {}}, "wrong_type", "learning_rate"),
    ],
)
def test_values_that_could_be_taken_for_something_else_are_refused(given, code, said):
    with pytest.raises(InvalidFields, match=said) as refusal:
        checked_hyperparameters(given)
    assert refusal.value.code == code


def test_numbers_and_words_are_values_alike():
    given = {"learning_rate": 1e-4, "bf16": True, "steps": 200, "name": "$(touch /tmp/canary)`id`;|&"}
    assert checked_hyperparameters(given) == {
        "learning_rate": "0.0001",
        "bf16": "true",
        "steps": "200",
        "name": "$(touch /tmp/canary)`id`;|&",
    }
