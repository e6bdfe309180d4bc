"""datasets and dataset-versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from tests.api.native.conftest import QUESTIONS, World, error_of, names
from tests.api.native.test_files import content_of

URL = "/api/v1/datasets"


def upload(client: APIClient, url: str, content: str = QUESTIONS, name: str = "faq.jsonl", **fields: Any) -> Any:
    """A form with a file."""
    return client.post(url, {"file": SimpleUploadedFile(name, content.encode()), **fields}, "multipart")


def test_a_data_set_is_created_and_gets_versions(alice_client: APIClient) -> None:
    body = {"name": "客服", "tags": ["faq"], "languages": ["zh"], "description": "d", "license": "MIT", "task": "qa"}
    made = alice_client.post(URL, body, "json")
    assert made.status_code == 201
    assert made.json()["newest_version"] is None
    assert {name: made.json()[name] for name in body} == body
    versions = f"{URL}/{made.json()['id']}/versions"
    first = upload(alice_client, versions)
    assert (first.status_code, first.json()["name"], first.json()["kind"]) == (201, "客服 v1", "question_answer")
    assert [column["name"] for column in first.json()["columns"]] == ["question", "answer"]
    assert upload(alice_client, versions, "a,b\n1,2\n", "t.csv").json()["number"] == 2
    assert [item["number"] for item in alice_client.get(versions).json()["items"]] == [2, 1]
    listed = alice_client.get(URL).json()["items"][0]
    assert (listed["num_versions"], listed["newest_number"]) == (2, 2)


def test_a_form_makes_data_set_and_first_version_or_neither(alice_client: APIClient) -> None:
    made = upload(alice_client, URL, name="faq.jsonl", tags=["a", "b"], purpose="sft")
    assert error_of(made)["code"] == "required"
    made = alice_client.post(
        URL, {"name": "faq", "tags": ["a", "b"], "purpose": "sft", "file": SimpleUploadedFile("q.jsonl", b'{"x": 1}')},
        "multipart",
    )  # fmt: skip
    assert made.status_code == 400
    assert alice_client.get(URL).json()["items"] == []
    made = alice_client.post(
        URL, {"name": "faq", "tags": ["a", "b"], "file": SimpleUploadedFile("q.jsonl", QUESTIONS.encode())}, "multipart"
    )
    assert made.status_code == 201
    assert made.json()["tags"] == ["a", "b"]
    assert made.json()["newest_version"]["num_samples"] == 5


def test_an_upload_says_which_split_and_subset_its_rows_are(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient
) -> None:
    file = SimpleUploadedFile("faq.jsonl", QUESTIONS.encode())
    form = {"name": "faq", "split": "train", "subset": "English", "file": file}
    made = alice_client.post(URL, form, "multipart")
    assert made.status_code == 201, made.content
    versions = f"{URL}/{made.json()['id']}/versions"
    assert upload(alice_client, versions).json()["subset"] == "Default"
    assert upload(alice_client, versions, split="test", subset="").json()["split"] == "test"
    listed = bob_client.get(versions).json()["items"]
    assert [(item["split"], item["subset"]) for item in listed] == [
        ("test", "Default"), ("", "Default"), ("train", "English"),
    ]  # fmt: skip
    refused = error_of(upload(alice_client, versions, split="dev"))
    assert (refused["code"], refused["field"]) == ("not_a_choice", "split")
    assert "train, validation, test" in refused["message"]
    assert upload(charlie_client, versions, split="train").status_code == 404


def test_a_bad_file_is_refused_with_every_line(alice_client: APIClient, world: World) -> None:
    url = f"{URL}/{world.dataset_version.dataset_id}/versions"
    response = upload(alice_client, url, '{"question": "a", "answer": "b"}\n{"question": \n[1]\n')
    assert response.status_code == 400
    messages = [problem["message"] for problem in error_of(response)["problems"]]
    assert messages[0].startswith("line 2")
    assert messages[1].startswith("line 3")


def test_rows_are_read_from_any_place(alice_client: APIClient, world: World) -> None:
    url = f"/api/v1/dataset-versions/{world.dataset_version.pk}/rows"
    page = alice_client.get(url, {"start": 3, "count": 10}).json()
    assert page["num_samples"] == 5
    assert page["items"] == [{"question": f"q{i}?", "answer": f"答{i}"} for i in (3, 4)]
    for query in ({"start": -1}, {"count": 0}, {"count": 501}, {"start": "x"}):
        assert alice_client.get(url, query).status_code == 400


def test_the_uploaded_file_comes_back_byte_for_byte(alice_client: APIClient, bob_client: APIClient) -> None:
    content = json.dumps([{"text": "一"}, {"text": "二"}], ensure_ascii=False, indent=2)
    dataset = alice_client.post(URL, {"name": "corpus"}, "json").json()
    version = upload(alice_client, f"{URL}/{dataset['id']}/versions", content, "corpus.json").json()
    response = bob_client.get(f"/api/v1/dataset-versions/{version['id']}/content")
    assert content_of(response) == content.encode()
    assert "corpus.json" in response["Content-Disposition"]
    part = bob_client.get(f"/api/v1/dataset-versions/{version['id']}/content", HTTP_RANGE="bytes=0-0")
    assert (part.status_code, content_of(part)) == (206, b"[")


def test_search_and_tag(alice_client: APIClient) -> None:
    alice_client.post(URL, {"name": "one", "tags": ["客服", "zh"]}, "json")
    alice_client.post(URL, {"name": "two", "tags": ["客服2"], "description": "one more"}, "json")
    assert names(alice_client, URL, {"search": "one"}) == ["two", "one"]
    assert names(alice_client, URL, {"search": "客服"}) == ["two", "one"]
    assert names(alice_client, URL, {"tag": "客服"}) == ["one"]
    assert names(alice_client, URL, {"tag": "zh", "search": "two"}) == []


def test_change_and_delete_are_for_the_owner(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.dataset_version.dataset_id}"
    for client, status in ((charlie_client, 404), (bob_client, 403), (alice_client, 200)):
        assert client.patch(url, {"description": "new"}, "json").status_code == status
    assert alice_client.get(url).json()["description"] == "new"
    assert upload(bob_client, f"{url}/versions").status_code == 403
    for target in (url, f"/api/v1/dataset-versions/{world.dataset_version.pk}"):
        refused = alice_client.delete(target)
        assert (refused.status_code, error_of(refused)["code"]) == (409, "in_use")
        assert "'tune'" in error_of(refused)["message"]


def test_an_unused_version_is_deleted(alice_client: APIClient) -> None:
    dataset = alice_client.post(URL, {"name": "a"}, "json").json()
    version = upload(alice_client, f"{URL}/{dataset['id']}/versions").json()
    assert alice_client.delete(f"/api/v1/dataset-versions/{version['id']}").status_code == 204
    assert alice_client.get(f"/api/v1/dataset-versions/{version['id']}").status_code == 404
    assert alice_client.delete(f"{URL}/{dataset['id']}").status_code == 204


def test_lists_take_the_same_number_of_queries_however_long(
    alice_client: APIClient, world: World, django_assert_num_queries: Callable[[int], Any]
) -> None:
    versions = f"{URL}/{world.dataset_version.dataset_id}/versions"
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(2):
            alice_client.get(URL)
        with django_assert_num_queries(3):
            alice_client.get(versions)
        upload(alice_client, versions)
        alice_client.post(URL, {"name": f"more {number}"}, "json")


def test_columns_are_mapped_as_the_form_says(alice_client: APIClient) -> None:
    url = f"{URL}/{alice_client.post(URL, {'name': 'mapped'}, 'json').json()['id']}/versions"
    made = upload(alice_client, url, "q,a\n1,2\n", "t.csv", mapping='{"question": "q", "answer": "a"}')
    assert made.status_code == 201, made.content
    assert (made.json()["kind"], made.json()["mapping"]) == ("question_answer", {"question": "q", "answer": "a"})
    refused = upload(alice_client, url, "q,a\n1,2\n", "t.csv", mapping='{"question": 1}')
    assert (error_of(refused)["code"], error_of(refused)["field"]) == ("wrong_type", "mapping")
