"""Fields of request bodies and query strings: a value of another type is refused, never bent into shape."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.core.validators import ProhibitNullCharactersValidator
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from clavier.core.errors import quoted

_REQUIRED = "this field is required."
YEAR_S = 366 * 24 * 3600
OPTIONS_HELP = (
    "`{resource_group, node_names, roles: [{name: master or worker, count, resources}], priority, is_urgent}`; "
    "all may be absent."
)


class Text(serializers.CharField):
    """A JSON string; blanks around it stay."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "blank": "it is empty.",
        "invalid": "needs a text, got {given}.",
        "max_length": "is longer than {max_length} characters.",
    }

    def __init__(self, **options: Any) -> None:
        options.setdefault("trim_whitespace", False)
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError for anything but a string."""
        if not isinstance(data, str):
            self.fail("invalid", given=quoted(data, 60))
        return super().to_internal_value(data)


class Name(Text):
    """What a thing is called, in NFC; which characters it may have is for its service to say, NUL included."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.validators = [one for one in self.validators if not isinstance(one, ProhibitNullCharactersValidator)]

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError for anything but a string."""
        return unicodedata.normalize("NFC", super().to_internal_value(data))


class WholeNumber(serializers.IntegerField):
    """A JSON integer within bounds; digits where the value comes from a form or a query string."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "invalid": "needs a whole number, got {given}.",
        "out_of_range": "{given} is not from {low} to {high}.",
    }

    def __init__(self, *, min_value: int, max_value: int, **options: Any) -> None:
        self.bounds = (min_value, max_value)
        super().__init__(min_value=min_value, max_value=max_value, **options)

    def to_internal_value(self, data: Any) -> int:
        """Raises ValidationError for another type and for what is out of bounds."""
        from_text = isinstance(data, str) and is_form(self.root)
        if from_text and data.removeprefix("-").isascii() and data.removeprefix("-").isdigit() and len(data) <= 20:
            data = int(data)
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid", given=quoted(data, 60))
        low, high = self.bounds
        if not low <= data <= high:
            self.fail("out_of_range", given=data, low=low, high=high)
        return int(data)


class Flag(serializers.BooleanField):
    """true or false; as words where the value comes from a form or a query string."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "invalid": "needs true or false, got {given}.",
    }

    def to_internal_value(self, data: Any) -> bool:
        """Raises ValidationError for anything else."""
        if is_form(self.root) and isinstance(data, str) and data.lower() in ("true", "false"):
            return data.lower() == "true"
        if not isinstance(data, bool):
            self.fail("invalid", given=quoted(data, 60))
        return bool(data)


class Identifier(serializers.UUIDField):
    """The id of an object."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "invalid": "needs an id (a UUID), got {given}.",
    }

    def to_internal_value(self, data: Any) -> UUID:
        """Raises ValidationError for what is no UUID in text."""
        try:
            return UUID(data if isinstance(data, str) else "")
        except ValueError:
            self.fail("invalid", given=quoted(data, 60))


class Choice(serializers.ChoiceField):
    """One of a few words."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "invalid_choice": "{given} is none of {allowed}.",
    }

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError naming the words."""
        if not isinstance(data, str) or data not in self.choices:
            self.fail("invalid_choice", given=quoted(data, 60), allowed=", ".join(map(str, self.choices)))
        return data


class StateChoice(Choice):
    """A state word in any case."""

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError naming the words."""
        return super().to_internal_value(data.upper() if isinstance(data, str) else data)


class Words(serializers.ListField):
    """A list of short texts."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "not_a_list": "needs a list of texts.",
        "max_length": "more than {max_length} texts.",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(child=Text(max_length=100), max_length=50, **options)


class AnyObject(serializers.DictField):
    """A JSON object whose keys a service checks."""

    default_error_messages = {
        "required": _REQUIRED,
        "null": "null is not allowed; leave the field out.",
        "not_a_dict": "needs an object {{...}}.",
    }


@extend_schema_field({"oneOf": [{"type": "object", "additionalProperties": {}}, {"type": "string"}]})
class ObjectOrText(AnyObject):
    """A JSON object, or a text that a service reads as one."""

    default_error_messages = {"not_a_dict": "needs an object {{...}} or a text."}

    def to_internal_value(self, data: Any) -> Any:
        """Raises ValidationError."""
        return data if isinstance(data, str) else super().to_internal_value(data)


class Strict(serializers.Serializer[Any]):
    """A request body: unknown fields are refused, and all that is wrong is reported at once."""

    default_error_messages = {"invalid": "needs an object {{...}}."}

    def to_internal_value(self, data: Any) -> Any:
        """Raises ValidationError with every bad and every unknown field."""
        unknown = unknown_fields(data, self.fields) if isinstance(data, Mapping) else {}
        try:
            value = super().to_internal_value(data)
        except serializers.ValidationError as error:
            if unknown and isinstance(error.detail, dict):
                raise serializers.ValidationError({**error.detail, **unknown}) from error
            raise
        if unknown:
            raise serializers.ValidationError(unknown)
        return value


class Form(Strict):
    """A multipart form or a query string, where every value comes as text."""


class Nothing(Strict):
    """A body without fields."""


class Resources(Strict):
    """What a run may use."""

    cpu_milli = WholeNumber(
        min_value=100, max_value=1_024_000, required=False, help_text="Thousandths of a core (default 1000)."
    )
    memory_mib = WholeNumber(
        min_value=128, max_value=67_108_864, required=False, help_text="Memory in MiB (default 4096)."
    )
    gpus = WholeNumber(min_value=0, max_value=64, required=False, help_text="Whole GPUs (default 0).")
    gpu_cores_percent = WholeNumber(
        min_value=0,
        max_value=100,
        required=False,
        help_text="A share of one GPU instead: percent of its time, counted at admission and not enforced.",
    )
    gpu_memory_mib = WholeNumber(
        min_value=0, max_value=1_048_576, required=False, help_text="Of the share: memory in MiB."
    )
    mig_profile = Text(max_length=20, allow_blank=True, required=False, help_text="MIG devices instead: `1g.10gb`.")
    mig_devices = WholeNumber(min_value=0, max_value=64, required=False, help_text="How many of them.")


class OwnCodeFields(Strict):
    """A program of the user's own; folders are `private/...` or `public/...` of the user's files."""

    command = Text(allow_blank=True, help_text="No shell reads it. `${model_dir}`, `${output_dir}` ... are filled in.")
    image = Identifier(required=False, allow_null=True, help_text="Id of an image version; absent: the platform's own.")
    code_folder = Text(required=False, allow_blank=True, max_length=5000, help_text="Copied; the command starts in it.")
    environment = AnyObject(required=False, help_text="`{NAME: value}`.")
    data_folder = Text(required=False, allow_blank=True, max_length=5000)
    model_folder = Text(required=False, allow_blank=True, max_length=5000)
    output_folder = Text(required=False, allow_blank=True, max_length=5000, help_text="Gets the output at the end.")


def is_form(root: Any) -> bool:
    """The values come from a form or a query string."""
    return isinstance(root, Form)


def unknown_fields(data: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, list[serializers.ErrorDetail]]:
    """Field -> error, for each that the serializer does not have, with the name that was likely meant."""
    writable = [name for name, field in known.items() if not getattr(field, "read_only", False)]
    errors = {}
    for name in data:
        if name in writable:
            continue
        near = difflib.get_close_matches(name, writable, n=1)
        known_words = f"known: {', '.join(writable)}" if writable else "none is known here"
        hint = f"did you mean {near[0]}?" if near else f"{known_words}."
        errors[name] = [serializers.ErrorDetail(f"unknown field; {hint}", code="unknown_field")]
    return errors
