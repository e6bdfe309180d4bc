"""Bad input: pages."""

from __future__ import annotations

import base64
import json
from typing import Any

from clavier.runs.models import Run
from finetune_app.models import FineTuneTask
from tests.cases.registry import ENGLISH, Scene, case

CREATE, LIST = "/kernel/fineTune/createLlmFineTuneTask", "/kernel/fineTune/listLlmFineTuneTask"


@case("PAGE-001")
def negative_page(scene: Scene) -> Any:
    return scene.post(LIST, {"pageNum": -1})


@case("PAGE-002")
def negative_size(scene: Scene) -> Any:
    return scene.post(LIST, {"pageSize": -1})


@case("PAGE-004")
def page_beyond_32_bits(scene: Scene) -> Any:
    return scene.post(LIST, {"pageNum": 2_147_483_648, "pageSize": 1000})


@case("PAGE-008")
def unknown_direction(scene: Scene) -> Any:
    return scene.post(LIST, {"sortOrder": "sideways"})


@case("PAGE-009")
def the_documents_zeros(scene: Scene) -> Any:
    response = scene.post("/model/aiApplication/getAiApplicationList", {"pageNum": 0, "pageSize": 0})
    page = response.json()["data"]
    assert (page["pageNum"], page["pageSize"], page["total"]) == (1, 10, len(page["rows"]))
    return response


@case("PAGE-010")
def page_past_the_end(scene: Scene) -> Any:
    response = scene.post("/model/evaluation/task/page", {"pageNum": 999_999, "pageSize": 10})
    page = response.json()["data"]
    assert (page["pageNum"], page["rows"]) == (999_999, [])
    return response


@case("PAGE-011")
def rows_inserted_while_paging(scene: Scene) -> Any:
    """In the order in which rows were made; the newest first is what a person wants to see and does move."""
    old = [scene.post(CREATE, {"name": f"row old {number}"}).json()["data"]["taskId"] for number in range(6)]
    page = {"pageSize": 3, "sortOrder": "asc", "taskName": "row"}
    first = scene.post(LIST, {**page, "pageNum": 1})
    for number in range(5):
        assert scene.post(CREATE, {"name": f"row new {number}"}).status_code == 200
    second = scene.post(LIST, {**page, "pageNum": 2})
    seen = [row["taskId"] for response in (first, second) for row in response.json()["data"]["rows"]]
    assert seen == old
    return second


def forged(value: Any) -> str:
    """A cursor of one's own making."""
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


@case("PAGE-012")
def a_forged_cursor(scene: Scene) -> Any:
    """In every kind of list; one that names a stranger's row in the list's own form moves nobody to the stranger."""
    own, theirs = FineTuneTask.objects.get(name="there"), FineTuneTask.objects.get(name=scene.victims["task_name"])
    own_runs = set(map(str, Run.objects.filter(tenant_id=scene.alice.tenant_id).values_list("pk", flat=True)))
    for place in ([0, "2999-01-01T00:00:00Z", str(theirs.run_id)], [1, "1999-01-01T00:00:00Z", str(theirs.run_id)]):
        page = scene.client.get("/api/v1/runs", {"cursor": forged(place)}).json()
        assert {item["id"] for item in page["items"]} == own_runs
    cursor = {"cursor": forged({"id": 1, "tenant": 2})}
    lists = ("runs", f"runs/{own.run_id}/events", "fine-tune-tasks", f"fine-tune-tasks/{own.pk}/events", "files")
    return [scene.client.get(f"/api/v1/{path}", cursor, **ENGLISH) for path in lists]
