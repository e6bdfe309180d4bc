"""A user's command: words, placeholders, environment. It is never given to a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from clavier.core.errors import FieldProblem, Invalid, InvalidFields, quoted

MAX_COMMAND_CHARACTERS = 8192
MAX_VARIABLES = 200
MAX_VALUE_CHARACTERS = 32_768
MAX_HYPERPARAMETERS = 200
MAX_HYPERPARAMETER_CHARACTERS = 4096

#: What a command may name of its run, besides its hyperparameters.
FOLDER_PLACEHOLDERS = ("model_dir", "input_dir", "output_dir", "checkpoint_dir", "work_dir", "config")

_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
_OPERATORS = re.compile(r"&&|\|\||[|&<>\n]")
#: The platform sets these; a value from outside would break the isolation, the devices or the meeting of the nodes.
_RESERVED_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "IFS", "ENV", "BASH_ENV", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"}
    | {"TRANSFORMERS_OFFLINE", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
)
_RESERVED_PREFIXES = ("CLAVIER_", "FTP_", "LD_", "PYTHON", "NVIDIA_", "PET_")


def split_command(text: str, *, field: str = "command") -> tuple[str, ...]:
    """The words of a command, by the quoting rules of a POSIX shell and nothing else of it.

    Raises Invalid: ``required``, ``too_long``, ``bad_value`` (NUL, a quote that is not closed, an unquoted pipe,
    redirection, ``&`` or line break: those need a shell, so they belong in a script).
    """
    if not text.strip():
        raise Invalid(f"{field} is empty. Give the program and its arguments.", code="required", field=field)
    if len(text) > MAX_COMMAND_CHARACTERS:
        raise Invalid(
            f"{field} has {len(text):,} characters; {MAX_COMMAND_CHARACTERS:,} are allowed. Put it into a script.",
            code="too_long",
            field=field,
        )
    if "\0" in text:
        raise Invalid(f"{field} {quoted(text)} has a NUL character.", code="bad_value", field=field)
    text = text.strip().replace("\\\r\n", " ").replace("\\\n", " ")
    operator = _OPERATORS.search(_QUOTED.sub("", text))
    if operator is not None:
        what = "a second line" if operator.group() == "\n" else f"the shell's {operator.group()}"
        raise Invalid(
            f"{field} has {what}, and no shell reads it. Put the commands into a script in the working folder and run "
            "'bash script.sh', or quote what is meant as it stands.",
            code="bad_value",
            field=field,
        )
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise Invalid(f"{field} {quoted(text)}: {error}.", code="bad_value", field=field) from error
    if not words or not words[0]:
        raise Invalid(f"{field} is empty. Give the program and its arguments.", code="required", field=field)
    return words


def placeholders_in(words: Iterable[str]) -> set[str]:
    """The names that ``${...}`` asks for."""
    return {name for word in words for name in _PLACEHOLDER.findall(word)}


def check_placeholders(words: Iterable[str], known: Iterable[str], *, field: str = "command") -> None:
    """Raises Invalid (``unknown_placeholder``) naming what the run does not have."""
    known = list(known)
    for name in sorted(placeholders_in(words) - set(known)):
        why = "this run has none: give its folder or version" if name in FOLDER_PLACEHOLDERS else "it is not known"
        there = ", ".join(f"${{{one}}}" for one in known)
        raise Invalid(
            f"{field} names ${{{name}}}, but {why}. There are {there}.",
            code="unknown_placeholder",
            field=field,
        )


def fill(words: Iterable[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The words with each known ``${name}`` replaced. A word stays one word, whatever the value holds."""
    return tuple(_PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word) for word in words)


def checked_environment(given: Mapping[str, Any], *, field: str = "environment") -> dict[str, str]:
    """The variables as text.

    Raises InvalidFields: ``bad_name``, ``reserved_name``, ``wrong_type``, ``bad_value``, ``too_many``.
    """
    if len(given) > MAX_VARIABLES:
        raise Invalid(
            f"{field} has {len(given):,} variables; {MAX_VARIABLES} are allowed.",
            code="too_many",
            field=field,
        )
    problems = [problem for name, value in given.items() if (problem := _variable_problem(name, value, field))]
    if problems:
        raise InvalidFields(problems)
    return {name: str(value) for name, value in given.items()}


def checked_hyperparameters(given: Mapping[str, Any], *, field: str = "hyperparameters") -> dict[str, str]:
    """The values that reach a user's program, as text.

    Raises InvalidFields: ``bad_name`` (a flag, a blank), ``not_settable`` (the platform's own names), ``wrong_type``,
    ``bad_value`` (line breaks, control characters), ``too_many``, ``too_long``.
    """
    if len(given) > MAX_HYPERPARAMETERS:
        raise Invalid(
            f"{field} has {len(given):,} values; {MAX_HYPERPARAMETERS} are allowed.",
            code="too_many",
            field=field,
        )
    problems = [problem for name, value in given.items() if (problem := _value_problem(name, value, field))]
    if problems:
        raise InvalidFields(problems)
    return {name: _as_text(value) for name, value in given.items()}


def _variable_problem(name: str, value: Any, field: str) -> FieldProblem | None:
    place = f"{field}.{name}"
    if not _NAME.fullmatch(name):
        message = f"{field}: {quoted(name)} is no name of a variable: letters, digits and '_', no digit first."
        return FieldProblem(field, "bad_name", message)
    if name in _RESERVED_NAMES or name.startswith(_RESERVED_PREFIXES):
        names = f"{', '.join(sorted(_RESERVED_NAMES))} and all that begins with {', '.join(_RESERVED_PREFIXES)}"
        return FieldProblem(place, "reserved_name", f"{field}: {name} is set by the platform, as are {names}.")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return FieldProblem(place, "wrong_type", f"{field}: {name} needs a text, got {quoted(value)}.")
    if "\0" in str(value):
        return FieldProblem(place, "bad_value", f"{field}: {name} has a NUL character.")
    if len(str(value)) > MAX_VALUE_CHARACTERS:
        message = f"{field}: {name} has {len(str(value)):,} characters; {MAX_VALUE_CHARACTERS:,} are allowed."
        return FieldProblem(place, "too_many", message)
    return None


def _value_problem(name: str, value: Any, field: str) -> FieldProblem | None:
    place = f"{field}.{name}"
    if not _NAME.fullmatch(name):
        message = f"{field}: {quoted(name)} is no name of a hyperparameter: letters, digits and '_', no digit first."
        return FieldProblem(place, "bad_name", message)
    if name in FOLDER_PLACEHOLDERS:
        return FieldProblem(place, "not_settable", f"{field}: {name} is the platform's to set; name it in the command.")
    if not isinstance(value, str | int | float):
        return FieldProblem(place, "wrong_type", f"{field}: {name} needs a text or a number, got {quoted(value)}.")
    text = _as_text(value)
    if len(text) > MAX_HYPERPARAMETER_CHARACTERS:
        message = f"{field}: {name} has {len(text):,} characters; {MAX_HYPERPARAMETER_CHARACTERS:,} are allowed."
        return FieldProblem(place, "too_long", message)
    if any(not character.isprintable() for character in text):
        message = f"{field}: {name} {quoted(text)} has a line break or a control character."
        return FieldProblem(place, "bad_value", message)
    return None


def _as_text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
