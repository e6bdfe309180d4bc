"""What the pages of data tasks and plugins start, show and refuse."""

from __future__ import annotations

from copy import copy

from datasets_app.models import DataPlugin, DataTask

TOKENS = {
    "samples": 5, "tokens": 70, "learned": 20, "longest": 19, "mean": 14.0,
    "histogram": [{"from": 10, "to": 20, "samples": 5}],
    "at": [{"max_length": 16, "longer": 2, "lost_truncate": 0.25, "lost_drop": 0.6}],
}  # fmt: skip
SAMPLE = {"kind": "near", "line": 3, "other_line": 7, "similarity": 0.91, "text": "<b>asked", "other_text": "asked?"}
OVERLAP = {
    "rows": 5,
    "sets": [{"label": "test v1", "rows": 9, "exact": 1, "near": 1, "samples": [SAMPLE]}],
    "within": {
        "near": 1,
        "samples": [SAMPLE],
        "compared": {"different": 1200, "comparisons": 9, "crowded": 1100},
    },
    "notes": [],
}


def test_reports_and_refusals_are_shown(alice_browser, world):
    columns = {"tenant": world.data.tenant, "created_by": world.data.created_by, "dataset": world.data.dataset}
    DataTask.objects.create(kind="tokens", state="done", version=world.data, result=TOKENS, **columns)
    DataTask.objects.create(kind="overlap", state="done", version=world.data, result=OVERLAP, **columns)
    DataTask.objects.create(kind="fetch", state="failed", message="line 2: bad", **columns)
    html = alice_browser.get(f"/datasets/{world.data.dataset_id}/work").content.decode()
    for part in (
        "25</td>",
        "60</td>",
        "line 2: bad",
        "Row 3 is row 7 of test v1",
        "&lt;b&gt;asked",
        "hx-trigger",
        "with the first 16",
    ):
        assert part in html, part


def test_each_form_starts_its_task_or_says_what_is_wrong(alice_browser, world):
    dataset, version = world.data.dataset_id, world.data.pk
    rounds = (
        (f"/datasets/{dataset}/fetch", {"source": "url", "location": "https://host.example/a.jsonl"}, "fetch"),
        (f"/datasets/{dataset}/generate", {"plugin": world.plugin.pk}, "plugin"),
        (f"/datasets/versions/{version}/tokens", {"model_version": world.base.pk}, "tokens"),
        (f"/datasets/versions/{version}/overlap", {"threshold": 90}, "overlap"),
    )
    for address, data, kind in rounds:
        before = DataTask.objects.filter(kind=kind).count()
        assert alice_browser.post(address, {}).status_code == 400
        assert alice_browser.post(address, data)["Location"].startswith(f"/datasets/{dataset}/work")
        assert DataTask.objects.filter(kind=kind).count() == before + 1
    refused = alice_browser.post(f"/datasets/{dataset}/fetch", {"source": "url", "location": "ftp://x/a.jsonl"})
    assert refused.status_code == 400
    assert "is no address" in refused.content.decode()


def test_a_plugin_is_registered_listed_and_forgotten(alice_browser, alice_user):
    form = {"name": "maker", "version": "2", "command": "true", "output_file": "a.csv", "provider": "us"}
    assert "no JSON" in alice_browser.post("/data-plugins/new", form | {"parameters": "["}).content.decode()
    good = form | {"parameters": '[{"name": "rows", "type": "int"}]'}
    assert alice_browser.post("/data-plugins/new", good)["Location"] == "/data-plugins"
    html = alice_browser.get("/data-plugins").content.decode()
    assert "maker 2" in html
    assert "<code>rows</code>" in html
    alice_browser.post(f"/data-plugins/{DataPlugin.objects.get().pk}/delete")
    assert not DataPlugin.objects.exists()


def test_a_version_says_how_many_of_its_rows_were_compared_with_a_few_others_only(
    alice_browser, charlie_browser, world
):
    version, page = world.data, f"/datasets/{world.data.dataset_id}"
    assert "1,100 crowded" not in alice_browser.get(page).content.decode()
    made = copy(version)  # saved as a row of its own
    made.pk, made._state.adding, made.number, made.parent = None, True, version.number + 1, version
    made.changes = {"removed": {}, "changed": {}, "crowded": 1100}
    made.save()
    assert "1,100 crowded" in alice_browser.get(page).content.decode()
    assert charlie_browser.get(page).status_code == 404
