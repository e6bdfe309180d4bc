"""YAML of users as plain data: no tags, no anchors, no doubled keys, nothing that runs or grows."""

from __future__ import annotations

from typing import Any

import yaml

from clavier.core.errors import Invalid, TooLarge, quoted

MAX_YAML_BYTES = 64 * 1024
MAX_DEPTH = 16


def parse_yaml(text: str, *, field: str) -> dict[str, Any]:
    """The mapping of one YAML document.

    Raises Invalid (``malformed_yaml``, ``unsafe_yaml``, ``duplicate_key``, ``wrong_type``), TooLarge.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_YAML_BYTES:
        raise TooLarge(f"{field} has {size:,} bytes; {MAX_YAML_BYTES:,} are allowed.", code="too_long", field=field)
    try:
        _refuse_what_grows(text, field)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_doubles(node, field)
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        raise _malformed(error, text, field) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Invalid(f"{field} is no YAML: {quoted(str(error), 200)}.", code="malformed_yaml", field=field) from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        message = f"{field} must be a mapping of names to values, such as task_type: sft."
        raise Invalid(message, code="wrong_type", field=field)
    return value


def _refuse_what_grows(text: str, field: str) -> None:
    """Look at the stream of events, which no alias has multiplied yet. Raises Invalid."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{field}, line {event.start_mark.line + 1 if event.start_mark else 1}"
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Invalid(f"{where}: an alias or anchor is not allowed.", code="unsafe_yaml", field=field)
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise Invalid(f"{where}: the tag {quoted(shown)} is not allowed.", code="unsafe_yaml", field=field)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise Invalid(f"{where}: a second document begins; send one.", code="malformed_yaml", field=field)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise Invalid(f"{where}: more than {MAX_DEPTH} levels.", code="malformed_yaml", field=field)


def _refuse_doubles(node: yaml.Node | None, field: str) -> None:
    """No mapping, at any depth, has a key twice. Raises Invalid."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubles(item, field)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        if key.value in seen and isinstance(key, yaml.ScalarNode):
            message = f"{field}, line {key.start_mark.line + 1}: the key {quoted(key.value)} comes twice."
            raise Invalid(message, code="duplicate_key", field=field)
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        _refuse_doubles(value, field)


def _malformed(error: yaml.MarkedYAMLError, text: str, field: str) -> Invalid:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Invalid(f"{field} is no YAML: {error.problem}.", code="malformed_yaml", field=field)
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
    why = "a tab can not indent; use spaces" if line[: mark.column + 1].startswith("\t") else error.problem
    message = f"{field}, line {mark.line + 1}, column {mark.column + 1}: {why}."
    return Invalid(message, code="malformed_yaml", field=field)
