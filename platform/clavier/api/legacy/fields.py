"""Fields of request bodies as the document types them: null and absent are the same, another type is refused."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from clavier.api.common.json_body import parse_json
from clavier.api.legacy.errors import IDENTITY_MISMATCH
from clavier.api.legacy.identity import Person, mismatch, names_person
from clavier.api.legacy.words import said, say
from clavier.core.errors import Invalid, quoted

MAX_TEXT = 20_000
INT32_MAX = 2**31 - 1
_REQUIRED = said("必填", "this field is required.")
_COMMON = {"required": _REQUIRED, "null": _REQUIRED, "blank": _REQUIRED}


class Word(serializers.CharField):
    """A text."""

    default_error_messages = {
        **_COMMON,
        "invalid": said("须为字符串，收到 {given}", "needs a text, got {given}."),
        "max_length": said("超过 {max_length} 个字符", "is longer than {max_length} characters."),
        "bad_value": said("含有 NUL 字符", "has a NUL character."),
    }

    def __init__(self, **options: Any) -> None:
        options.setdefault("required", False)
        options.setdefault("allow_null", not options["required"])
        options.setdefault("allow_blank", not options["required"])
        options.setdefault("trim_whitespace", False)
        options.setdefault("max_length", MAX_TEXT)
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError for anything but a string."""
        if not isinstance(data, str):
            self.fail("invalid", given=quoted(data, 60))
        if "\0" in data:
            self.fail("bad_value")
        return super().to_internal_value(data)


class Place(Word):
    """A path in the user's files."""

    default_error_messages = {"bad_path": said("路径含有 NUL 字符", "has a NUL character.")}

    def __init__(self, **options: Any) -> None:
        options.setdefault("max_length", 4096)
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError."""
        if isinstance(data, str) and "\0" in data:
            self.fail("bad_path")
        return super().to_internal_value(data)


class Id(Word):
    """The id of an object: a text, or a number as some clients send it."""

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError."""
        is_number = isinstance(data, int) and not isinstance(data, bool)
        return super().to_internal_value(str(data) if is_number else data)


class UserIs(Id):
    """A field that names a user: it never grants anything, it only may name the caller."""

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError (``identity_mismatch``), the same whether that user exists or not."""
        name = super().to_internal_value(data)
        person = self.context["person"]
        assert isinstance(person, Person)
        if name and not names_person(name, person):
            raise serializers.ValidationError(mismatch(person), code=IDENTITY_MISMATCH)
        return name


class Number(serializers.IntegerField):
    """A whole number within bounds; its digits in a text are the same."""

    default_error_messages = {
        **_COMMON,
        "invalid": said("须为整数，收到 {given}", "needs a whole number, got {given}."),
        "out_of_range": said(
            "{given} 超出范围，须 >= {low} 且 <= {high}", "{given} is out of range; it must be >= {low} and <= {high}."
        ),
    }

    def __init__(self, low: int = 0, high: int = INT32_MAX, **options: Any) -> None:
        self.low, self.high = low, high
        options.setdefault("required", False)
        options.setdefault("allow_null", not options["required"])
        super().__init__(min_value=low, max_value=high, **options)

    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        """An empty text is no number."""
        return super().validate_empty_values(None if data == "" else data)

    def to_internal_value(self, data: Any) -> int:
        """Raises ValidationError for another type and for what is out of bounds."""
        if isinstance(data, str) and data.removeprefix("-").isascii() and data.removeprefix("-").isdigit():
            data = int(data) if len(data) <= 20 else data
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid", given=quoted(data, 60))
        if not self.low <= data <= self.high:
            # A negative number is wrong before it is too small.
            low = 0 if data < 0 else self.low
            self.fail("out_of_range", given=data, low=low, high=self.high)
        return int(data)


@extend_schema_field({"oneOf": [{"type": "boolean"}, {"type": "string"}, {"type": "integer"}], "nullable": True})
class YesNo(serializers.BooleanField):
    """true or false, also as YES/NO, 1/0 and as texts."""

    default_error_messages = {
        **_COMMON,
        "invalid": said("须为 true 或 false，收到 {given}", "needs true or false, got {given}."),
    }
    _MEANINGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

    def __init__(self, **options: Any) -> None:
        options.setdefault("required", False)
        options.setdefault("allow_null", True)
        super().__init__(**options)

    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        """An empty text is neither."""
        return super().validate_empty_values(None if data == "" else data)

    def to_internal_value(self, data: Any) -> bool:
        """Raises ValidationError for anything else."""
        found = self._MEANINGS.get(str(data).lower()) if isinstance(data, str | bool | int) else None
        if found is None:
            self.fail("invalid", given=quoted(data, 60))
        return found


class OneOf(Word):
    """One of a few words, in any case; the word as the document spells it."""

    default_error_messages = {
        "not_a_choice": said("{given} 不是 {allowed} 之一", "{given} is none of {allowed}."),
    }

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        self.words = {word.lower(): word for word in words}
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> str:
        """Raises ValidationError naming the words."""
        is_number = isinstance(data, int) and not isinstance(data, bool)
        text = super().to_internal_value(str(data) if is_number else data)
        if text and text.lower() not in self.words:
            self.fail("not_a_choice", given=quoted(text, 60), allowed=", ".join(self.words.values()))
        return self.words.get(text.lower(), "")


class Words(serializers.ListField):
    """A list of texts; one text alone is a list of it."""

    default_error_messages = {
        **_COMMON,
        "not_a_list": said("须为字符串列表", "needs a list of texts."),
        "max_length": said("超过 {max_length} 项", "has more than {max_length} texts."),
    }

    def __init__(self, **options: Any) -> None:
        options = {"required": False, "allow_null": True, "max_length": 1000, **options}
        super().__init__(child=Word(allow_null=False, max_length=options.pop("text_length", 1000)), **options)

    def to_internal_value(self, data: Any) -> list[Any]:
        """Raises ValidationError."""
        if isinstance(data, str):
            data = [data] if data else []
        return super().to_internal_value(data)


class Structure(serializers.JSONField):
    """A JSON structure, or a text that holds one; ``kind`` is what it must be."""

    default_error_messages = {
        **_COMMON,
        "wrong_type": said("须为 {kind}，收到 {given}", "needs {kind}, got {given}."),
        "malformed_json": said("不是有效的 JSON：{why}", "is no JSON: {why}"),
    }
    _KINDS = {list: "JSON [...]", dict: "JSON {...}"}

    def __init__(self, kind: type[list[Any]] | type[dict[str, Any]] = list, **options: Any) -> None:
        self.kind = kind
        options.setdefault("required", False)
        options.setdefault("allow_null", True)
        super().__init__(**options)

    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        """Nothing, in the spellings that the document has for it."""
        return super().validate_empty_values(None if data in ("", "null") else data)

    def to_internal_value(self, data: Any) -> Any:
        """Raises ValidationError."""
        if isinstance(data, str):
            try:
                data = parse_json(data.encode("utf-8", "surrogatepass"))
            except Invalid as fault:
                self.fail("malformed_json", why=fault.message)
        if not isinstance(data, self.kind):
            self.fail("wrong_type", kind=self._KINDS[self.kind], given=quoted(data, 60))
        return data


class BodyList(serializers.ListSerializer[Any]):
    """A list of objects."""

    default_error_messages = {
        **_COMMON,
        "not_a_list": said("须为对象列表", "needs a list of objects."),
        "max_length": said("超过 {max_length} 项", "has more than {max_length} items."),
    }


class Body(serializers.Serializer[Any]):
    """A request body: unknown fields are refused, null is absent, and all that is wrong is reported at once."""

    default_error_messages = {**_COMMON, "invalid": said("须为对象 {{...}}", "needs an object {{...}}.")}

    class Meta:
        list_serializer_class = BodyList

    def to_internal_value(self, data: Any) -> Any:
        """Raises ValidationError with every bad and every unknown field."""
        if not isinstance(data, Mapping):
            self.fail("invalid")
        unknown = unknown_fields(data, self.fields)
        try:
            value = super().to_internal_value(data)
        except serializers.ValidationError as error:
            if unknown and isinstance(error.detail, dict):
                raise serializers.ValidationError({**error.detail, **unknown}) from error
            raise
        if unknown:
            raise serializers.ValidationError(unknown)
        return {name: found for name, found in value.items() if found is not None}


def unknown_fields(data: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, list[serializers.ErrorDetail]]:
    """Field -> error, for each that the body does not have, with the name that was likely meant."""
    errors = {}
    for name in data:
        if name in known:
            continue
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = say(f"，是否为 {near[0]}？", f"; did you mean {near[0]}?") if near else ""
        errors[name] = [serializers.ErrorDetail(say(f"未知参数{hint}", f"unknown field{hint}"), code="unknown_field")]
    return errors


def as_text(value: Any) -> str:
    """A structure in the form in which the document prints it: compact JSON in a string."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
