"""runs: what is behind everything that computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rest_framework.test import APIClient

from clavier.core.actor import Actor
from clavier.quotas.models import Node
from clavier.runs.admission import begin_attempt
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from tests.api.native.conftest import World, end, error_of, make_task, names, write
from tests.api.native.test_files import content_of

URL = "/api/v1/runs"


def test_runs_are_listed_by_state_and_kind(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    assert names(alice_client, URL, {}, "kind") == ["replica", "evaluation", "fine_tune"]
    end(world.run)
    assert names(bob_client, URL, {"state": "failed"}, "kind") == ["fine_tune"]
    assert names(bob_client, URL, {"kind": "replica", "state": "PENDING"}, "kind") == ["replica"]
    assert names(charlie_client, URL, {}, "kind") == []
    assert error_of(alice_client.get(URL, {"kind": "magic"}))["code"] == "not_a_choice"


def test_a_run_tells_its_state_position_and_attempts(
    alice_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.run.pk}"
    run = alice_client.get(url).json()
    assert (run["state"], run["waiting"]["position"], run["attempts"], run["subject_id"]) == (
        "PENDING", 2, [], str(world.task.pk),
    )  # fmt: skip
    begin_attempt(run=world.run, nodes=[Node.objects.get(name="local")])
    run = alice_client.get(url).json()
    assert (run["state"], run["waiting"]["position"]) == ("PREPARING", None)
    assert [(attempt["number"], attempt["node"]) for attempt in run["attempts"]] == [(1, "local")]
    assert charlie_client.get(url).status_code == 404


def test_only_an_operator_moves_a_waiting_run_up(
    alice_client: APIClient, charlie_client: APIClient, operator_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.run.pk}"
    assert alice_client.patch(url, {"priority": 50}, format="json").status_code == 403
    assert charlie_client.patch(url, {"priority": 50}, format="json").status_code == 404
    assert error_of(operator_client.patch(url, {"priority": 1000}, format="json"))["field"] == "priority"
    moved = operator_client.patch(url, {"priority": 50}, format="json").json()
    assert (moved["priority"], moved["waiting"]["position"]) == (50, 1)
    begin_attempt(run=world.run, nodes=[Node.objects.get(name="local")])
    assert error_of(operator_client.patch(url, {"priority": 0}, format="json"))["code"] == "already_started"


def test_each_container_of_a_run_has_a_log_of_its_own(
    alice_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.run.pk}"
    write(world.run, "log.txt", b"zero\n")
    write(world.run, "log-1.txt", b"one\n")
    assert error_of(alice_client.get(f"{url}/log", {"rank": 1}))["field"] == "rank"
    Run.objects.filter(pk=world.run.pk).update(num_containers=2)
    assert alice_client.get(f"{url}/log", {"rank": 1}).json()["text"] == "one\n"
    assert content_of(alice_client.get(f"{url}/log/download", {"rank": 1})) == b"one\n"
    assert charlie_client.get(f"{url}/log", {"rank": 1}).status_code == 404


def test_events_and_log_of_a_run(
    alice_client: APIClient, bob_client: APIClient, charlie_client: APIClient, world: World
) -> None:
    url = f"{URL}/{world.run.pk}"
    write(world.run, "log.txt", b"step 1\n")
    end(world.run)
    assert [event["to_state"] for event in bob_client.get(f"{url}/events").json()["items"]] == ["FAILED", "PENDING"]
    first = bob_client.get(f"{url}/events?limit=1").json()
    rest = bob_client.get(f"{url}/events", {"cursor": first["next"]}).json()
    assert [event["to_state"] for event in rest["items"]] == ["PENDING"]
    assert bob_client.get(f"{url}/log").json()["text"] == "step 1\n"
    assert content_of(alice_client.get(f"{url}/log/download")) == b"step 1\n"
    for part in ("events", "log", "log/download"):
        assert charlie_client.get(f"{url}/{part}").status_code == 404


def test_a_log_that_is_a_link_is_not_followed(alice_client: APIClient, world: World) -> None:
    write(world.run, "other.txt", b"not the log")
    folder = run_folder(world.run.pk)
    (folder / "log.txt").symlink_to(folder / "other.txt")
    assert alice_client.get(f"{URL}/{world.run.pk}/log/download").status_code == 404
    assert alice_client.get(f"{URL}/{world.run.pk}/log").json()["text"] == ""


def test_a_list_takes_the_same_number_of_queries_however_long(
    alice_client: APIClient, alice: Actor, world: World, django_assert_num_queries: Callable[[int], Any]
) -> None:
    alice_client.get(URL)
    for number in range(2):
        with django_assert_num_queries(2):
            alice_client.get(URL)
        make_task(alice, world.base, world.dataset_version, f"more {number}")
