"""The document against the platform: its examples, and every row of its field tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema

from clavier.accounts.services import create_user
from clavier.api.legacy.envelopes import IMAGES
from clavier.api.legacy.groups import key_of
from clavier.api.legacy.urls import ROUTES
from clavier.quotas.models import QuotaWindow, ResourceGroup
from clavier.quotas.services import ensure_local_node
from tests.api.conftest import client_of
from tests.api.legacy.conftest import form, payload
from tests.api.legacy.replay import Exchange, replay
from tests.api.native.conftest import make_dataset, make_model
from tests.conftest import actor_of

FIELDS = json.loads(Path(__file__).with_name("fields.json").read_text())["operations"]
#: Rows that name the body as a whole.
BODIES = {"JSONObject", "aiApplicationDTO", "pageInfo", "createTaskBO", "modelServerDTO", "jsonObject"}
#: Rows that the document prints a level too far left: their own rows, and those after them, are where they belong.
OUTDENTED = {"commonHyperParameters", "fineTuneHyperParameters"}
#: Rows that the swagger prints for a free-form object.
FREE_FORM = {"additionalProperty1"}
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "int": (int,), "number": (int, float), "double": (int, float),
    "boolean": (bool,), "array": (list,), "Timestamp": (str, dict),
}  # fmt: skip
SCHEMA_KINDS = {"string": {"string", "integer"}, "integer": {"integer"}, "boolean": {"boolean"}, "array": {"array"}}


@pytest.fixture
def exchanges(home: Path, db: None) -> list[Exchange]:
    """All examples, sent by the document's own user."""
    ensure_local_node()
    user, tenant = create_user(username="zjm", tenant_name="h3c", password="zjm-secret-1")
    actor, client = actor_of(user), client_of(user)
    for folder, name in (("lightgbm", "config.json"), ("llama2-13b", "x"), ("opencompass-0.1.2", "run.py"),
                         ("code", "train.py"), ("config", "config.json"), ("dzq", "aios-busybox222.tar"),
                         ("data/train", "a"), ("data/validate", "b"), ("data/test", "c")):  # fmt: skip
        payload(client.post("/file/file/uploadFolder", **form(name, b"{}", currentPath=folder)))
    now = {"valid_from": datetime(2023, 10, 23, tzinfo=UTC), "valid_until": datetime(2223, 11, 30, tzinfo=UTC)}
    QuotaWindow.objects.create(scope="tenant", scope_id=tenant.pk, **now)
    group = ResourceGroup.objects.get()
    known = {
        "user": "zjm", "model_version": str(make_model(actor, "base").pk), "group_id": str(group.pk),
        "dataset_version": str(make_dataset(actor).pk), "group_name": group.name, "group_key": key_of(group.pk),
        "text_version": str(make_dataset(actor, "corpus", '{"text": "你好"}\n' * 5).pk),
    }  # fmt: skip
    return replay(client, known)


def document() -> dict[str, Any]:
    """The OpenAPI document of this dialect."""
    generator = SchemaGenerator(urlconf="clavier.api.legacy.urls")  # type: ignore[no-untyped-call]
    found: dict[str, Any] = generator.get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return found


def differences(printed: Any, given: Any, path: str = "") -> Iterator[str]:
    """Where an answer has not what the document prints: a key, a type, and outside of templates a code or message."""
    if printed is None or (given is None and path.endswith((".endTime", ".startTime"))):
        return
    if isinstance(printed, dict):
        if not isinstance(given, dict):
            yield f"{path}: {given!r} is no object"
            return
        for name, value in printed.items():
            if name in given:
                yield from differences(value, given[name], f"{path}.{name}")
            else:
                yield f"{path}.{name} is missing"
    elif isinstance(printed, list):
        if not isinstance(given, list) or (printed and not given):
            yield f"{path}: {given!r} is no list like {printed!r}"
        elif printed:
            yield from differences(printed[0], given[0], f"{path}[0]")
    elif isinstance(printed, bool) != isinstance(given, bool) or not same_kind(printed, given):
        yield f"{path}: {given!r} is not of the type of {printed!r}"


def same_kind(printed: Any, given: Any) -> bool:
    """Both numbers, or both of one type."""
    numbers = (int, float)
    return isinstance(given, numbers) if isinstance(printed, numbers) else isinstance(given, type(printed))


def test_every_example_is_answered_as_printed(exchanges: list[Exchange]) -> None:
    wrong = []
    for exchange in exchanges:
        if exchange.status != exchange.example["status"]:
            wrong.append(f"{exchange.name}: HTTP {exchange.status}: {exchange.answer}")
        elif exchange.status != 200:
            wrong += [f"{exchange.name}: {exchange.answer}"] * (exchange.answer["error"] != exchange.example["error"])
        else:
            printed = exchange.example["response"]
            wrong += [f"{exchange.name}{path}" for path in differences(printed, exchange.answer)]
            if printed.get("message"):  # the swagger's samples are templates: message "" and code 0
                for name in ("message", "code", "errorCode", "returnCode", "status", "success"):
                    if name in printed and printed[name] != exchange.answer[name]:
                        wrong.append(f"{exchange.name}.{name}: {exchange.answer[name]!r}, printed {printed[name]!r}")
    assert wrong == []


def test_every_operation_has_an_example_that_succeeds(exchanges: list[Exchange]) -> None:
    done = {exchange.example["operation"] for exchange in exchanges if exchange.status == 200}
    assert {operation["id"] for operation in FIELDS} - done == set()


def test_the_tables_are_whole() -> None:
    rows = [row for operation in FIELDS for row in operation["rows"]]
    pretraining = [row for operation in FIELDS if operation["id"] in ("S1-15", "S1-16", "S1-17", "S1-18", "S1-19")
                   for row in operation["rows"]]  # fmt: skip
    assert (len(rows), len(rows) - len(pretraining)) == (633, 530), "pretraining repeats the 103 rows of fine-tuning"
    assert max(Counter(row["id"] for row in rows).values()) == 1


def test_every_row_of_the_field_tables_holds(exchanges: list[Exchange]) -> None:
    schema, wrong, seen = document(), [], 0
    for operation in FIELDS:
        path = spelled(operation["route"], schema)
        described = schema["paths"][path][operation["method"].lower()]
        answers = [exchange.answer for exchange in exchanges
                   if exchange.example["operation"] == operation["id"] and exchange.status == 200]  # fmt: skip
        for row, names in with_paths(operation["rows"]):
            seen += 1
            letter = row["id"].split(".")[1][0]
            if letter == "h":
                problem = problem_with_status(row["name"], described)
            elif letter == "q":
                problem = problem_with_field(row, names, described, schema)
            else:
                problem = problem_with_answer(row, names, answers[-1])
            wrong += [f"{row['id']} {'.'.join(names)}: {problem}"] if problem else []
    assert "\n".join(wrong) == ""
    assert seen == 633


def spelled(route: str, schema: dict[str, Any]) -> str:
    """The spelling of a route that the OpenAPI document shows; both are served."""
    bare = route.removeprefix("/api")
    return next(path for path in schema["paths"] if path.removeprefix("/api") == bare)


def with_paths(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each row with the names from the top of the body to it."""
    stack: list[tuple[int, str]] = []
    for row in rows:
        depth, name = row["depth"] or int(row["name"] in OUTDENTED), row["name"]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        stack.append((depth, name))
        yield row, [part for _, part in stack if part not in BODIES]


def problem_with_status(status: str, described: dict[str, Any]) -> str:
    """A status of the document that an operation does not know; a create answers 200, 701 is the code of a 400."""
    if status == "701":
        return "" if IMAGES.bad_request_code == 701 else "701 is not the code of bad input"
    wanted = "200" if status == "201" else status
    # A route without an id of an object has none to miss.
    return "" if wanted in described["responses"] or wanted == "404" else f"{wanted} is not described"


def problem_with_field(row: dict[str, Any], names: list[str], described: dict[str, Any], schema: dict[str, Any]) -> str:
    """A field of a request that the OpenAPI document lacks or types otherwise."""
    if not names or row["name"] in FREE_FORM:
        return ""
    parameters = {parameter["name"]: parameter["schema"] for parameter in described.get("parameters", [])}
    if len(names) == 1 and names[0] in parameters:
        return ""
    node: Any = next(iter(described["requestBody"]["content"].values()))["schema"]
    for name in names:
        node = resolved(node, schema)
        node = resolved(node["items"], schema) if node.get("type") == "array" else node
        if name not in node.get("properties", {}):
            return "is missing"
        node = node["properties"][name]
    kind = row["type"].split("(")[0].lower()
    given = resolved(node, schema).get("type")
    return f"is {given}, not {kind}" if given and given not in SCHEMA_KINDS.get(kind, {given}) else ""


def resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema behind its references."""
    while "$ref" in node or "allOf" in node:
        node = node["allOf"][0] if "allOf" in node else schema["components"]["schemas"][node["$ref"].rsplit("/", 1)[1]]
    return node


def problem_with_answer(row: dict[str, Any], names: list[str], answer: Any) -> str:
    """A field of an answer that is missing or of another type than documented."""
    value = answer
    for name in names:
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, dict) or name not in value:
            return "is missing"
        value = value[name]
    kinds = KINDS.get(row["type"].split("(")[0])
    if kinds is None or (value is None and names == ["result"]):
        return ""
    is_kind = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    return "" if is_kind else f"{value!r} is no {row['type']}"


def test_the_openapi_document_is_valid_and_needs_no_guesses(capsys: pytest.CaptureFixture[str]) -> None:
    found = document()
    validate_schema(found)  # type: ignore[no-untyped-call]
    assert "Warning" not in capsys.readouterr().err
    assert len(found["paths"]) == len(ROUTES) == 23
    ids = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids) == 23
