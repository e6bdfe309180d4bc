"""Several versions of a service, own servers, drafts, and what can not be served."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter

import pytest

from clavier.core.errors import Forbidden, Invalid, InvalidFields, NotFound, Unprocessable
from clavier.quotas.models import Node
from clavier.runs.models import Run
from clavier.runs.outputs import run_folder
from inference_app.models import InferenceService
from inference_app.queries import (
    NoHealthyReplica,
    choose_upstreams,
    replica_facts,
    replicas_of,
    state_of,
    visible_services,
)
from inference_app.services import access_service, add_service_version, create_service, set_traffic, start_service
from tests.engine import make_engine
from tests.worlds import make_image_version, make_model_version, put_tree

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(runs_for_s=None)
    return made


@pytest.fixture
def two(engine, alice):
    """A service of two versions, 80 to 20."""
    base = make_model_version(alice)
    versions = [
        {"model_version": base.pk, "traffic_percent": share, "resources": {"cpu_milli": 100, "memory_mib": 128}}
        for share in (80, 20)
    ]
    return create_service(actor=alice, name="split", versions=versions)


def become_ready(engine):
    """All servers report that they answer."""
    engine.step()
    for run in Run.objects.filter(state="PREPARING"):
        work = run_folder(run.pk) / "work"
        work.mkdir(exist_ok=True)
        ready = {"endpoint": {"unix": f"/{run.name}"}, "served_name": "x", "api_key": "k"}
        (work / "ready.json").write_text(json.dumps(ready))
    engine.step()


def test_requests_are_shared_between_versions_by_their_rate(engine, two, alice):
    become_ready(engine)
    assert state_of(visible_services(alice).get(pk=two.pk)) == "READY"
    first, second = (Run.objects.get(name=f"split@{number} replica 0").pk for number in (1, 2))
    seen = Counter(choose_upstreams(alice, "split")[0].run_id for _ in range(300))
    assert 190 <= seen[first] <= 285
    assert seen[second] >= 15
    set_traffic(actor=alice, service=two, shares={2: 100})
    assert {choose_upstreams(alice, "split")[0].run_id for _ in range(20)} == {second}
    assert choose_upstreams(alice, "split@1")[0].run_id == first


@pytest.mark.parametrize("shares", [(60, 60), (10, 20), (101, -1)])
def test_rates_that_are_not_100_are_refused_and_the_old_split_still_serves(engine, two, alice, shares):
    with pytest.raises(Invalid, match="100") as refusal:
        set_traffic(actor=alice, service=two, shares=dict(zip((1, 2), shares, strict=True)))
    assert refusal.value.code == "rates_not_100"
    assert str(sum(shares)) in refusal.value.message
    assert [version.traffic_percent for version in two.versions.order_by("number")] == [80, 20]
    base = make_model_version(alice)
    with pytest.raises(Invalid):
        create_service(
            actor=alice,
            name="bad",
            versions=[{"model_version": base.pk, "traffic_percent": max(0, one)} for one in (60, 60)],
        )


def test_a_further_version_starts_with_the_service_and_waits_for_traffic(engine, two, alice):
    third = add_service_version(actor=alice, service=two, model_version=make_model_version(alice).pk)
    assert (third.number, third.traffic_percent) == (3, 0)
    assert Run.objects.filter(name="split@3 replica 0").exists()
    become_ready(engine)
    set_traffic(actor=alice, service=two, shares={1: 90, 3: 10})
    facts = [replica_facts(replica) for replica in replicas_of(two)]
    assert {fact["node"] for fact in facts} == {Node.objects.get().name}
    assert all(fact["state"] == "RUNNING" and fact["started_at"] for fact in facts)


def test_a_service_scores_or_writes_but_not_both(engine, two, alice):
    scorer = make_model_version(alice, "scorer", task="reward")
    with pytest.raises(Invalid, match="are models for generation and reward; make a service for each") as refusal:
        add_service_version(actor=alice, service=two, model_version=scorer.pk)
    assert (refusal.value.code, two.versions.count()) == ("wrong_task", 2)
    mixed = [{"model_version": made.pk, "traffic_percent": 50} for made in (scorer, make_model_version(alice))]
    with pytest.raises(Invalid, match="make a service for each"):
        create_service(actor=alice, name="mixed", versions=mixed)
    with pytest.raises(InvalidFields, match="one GPU or on none"):
        create_service(actor=alice, name="scores", model_version=scorer.pk, resources={"gpus": 2})
    assert not InferenceService.objects.exclude(pk=two.pk).exists()


def test_charlie_and_bob_do_not_change_the_service_of_alice(engine, two, bob, charlie, alice):
    with pytest.raises(NotFound):
        access_service(charlie, two.pk)
    with pytest.raises(Forbidden):
        set_traffic(actor=bob, service=two, shares={1: 100})
    with pytest.raises(Forbidden):
        add_service_version(actor=bob, service=two, model_version=make_model_version(alice).pk)
    with pytest.raises(NotFound):
        set_traffic(actor=alice, service=two, shares={9: 100})


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"min_replicas": 3, "max_replicas": 1}, "out_of_range", "min_replicas"),
        ({"num_replicas": 0}, "out_of_range", "num_replicas"),
        ({"image_ports": [0]}, "out_of_range", "image_ports"),
        ({"image_ports": [65536]}, "out_of_range", "image_ports"),
        ({"image_ports": ["22;id"]}, "out_of_range", "image_ports"),
        ({"request_method": "soap"}, "not_a_choice", "request_method"),
        ({"scale_on": "luck"}, "not_a_choice", "scale_on"),
        ({"scale_threshold": 0}, "out_of_range", "scale_threshold"),
        ({"environment": {"LD_PRELOAD": "x"}}, "reserved_name", "environment.LD_PRELOAD"),
        ({"volumes": [{"src": "private/none"}]}, "wrong_type", "volumes[0]"),
        ({"hyperparameters": {"temperature": 1}}, "not_honoured", "hyperparameters"),
        ({"volumes": [{"src": "private/lightgbm", "dst": "/dd"}]}, "not_honoured", "volumes"),
        ({"volume_path": "private/lightgbm"}, "not_honoured", "volume_path"),
        ({"model_version": None}, "required", "model_version"),
        ({"colour": "red"}, "unknown_field", "colour"),
    ],
)
def test_a_bad_field_is_named(engine, alice, spooled, change, code, field):
    put_tree(alice, spooled, {"lightgbm/a.txt": "x"})
    given = {"model_version": make_model_version(alice).pk} | change
    with pytest.raises(InvalidFields) as refusal:
        create_service(actor=alice, name="bad", **given)
    assert (refusal.value.code, refusal.value.field) == (code, field)
    with pytest.raises(InvalidFields) as refusal:
        create_service(actor=alice, name="bad", versions=[given])
    assert refusal.value.field == f"versions[0].{field}"
    assert not InferenceService.objects.exists()


@pytest.mark.parametrize("path", ["data", "/etc/x", "/usr", "/", "/a/../etc", "/proc/1"])
def test_a_volume_does_not_cover_the_system(engine, alice, spooled, path):
    put_tree(alice, spooled, {"lightgbm/a.txt": "x"})
    with pytest.raises(InvalidFields) as refusal:
        create_service(
            actor=alice, name="bad", model_version=make_model_version(alice).pk,
            volumes=[{"src": "private/lightgbm", "dst": path}],
        )  # fmt: skip
    assert (refusal.value.code, refusal.value.field) == ("bad_path", "volumes[0].dst")


def test_a_draft_keeps_what_can_not_be_started_here(engine, alice, spooled):
    put_tree(alice, spooled, {"lightgbm/a.txt": "x"})
    base = make_model_version(alice)
    own = {
        "model_version": base.pk, "command": "serve ${model_dir} --port ${port}", "image_ports": [5050],
        "volumes": [{"src": "private/lightgbm", "dst": "/dd"}], "environment": {"eee": "tess"},
    }  # fmt: skip
    draft = create_service(actor=alice, name="draft", **own, start=False)
    assert state_of(visible_services(alice).get(pk=draft.pk)) == "DRAFT"
    with pytest.raises(Unprocessable, match="needs a container") as refusal:
        start_service(actor=alice, service=draft)
    assert refusal.value.code == "needs_container"
    assert access_service(alice, draft.pk).desired_state == "draft"
    grpc = create_service(actor=alice, name="grpc", model_version=base.pk, request_method="grpc", start=False)
    with pytest.raises(Unprocessable, match="not gRPC"):
        start_service(actor=alice, service=grpc)
    with pytest.raises(Unprocessable):
        create_service(actor=alice, name="now", model_version=base.pk, request_method="grpc")
    assert not Run.objects.exists()
    assert not InferenceService.objects.filter(name="now").exists()


def test_an_own_server_in_a_container_is_told_its_socket_port_and_volumes(engine, alice, spooled, home, settings):
    settings.CONTAINER_EXECUTORS = ("local_process",)
    put_tree(alice, spooled, {"lightgbm/a.txt": "x"})
    image = make_image_version(alice, cmd=["serve", "--all"])
    service = create_service(
        actor=alice, name="own", image=image.pk, image_ports=[5050], environment={"At": "122"},
        volumes=[{"src": "private/lightgbm", "dst": "/dd"}], hyperparameters={"top_k": 3},
    )  # fmt: skip
    run = Run.objects.get(subject_id=service.pk)
    spec = run.run_spec()
    socket = str(run_folder(run.pk) / "work" / "server.sock")
    assert spec.argv == ("serve", "--all", "--top_k", "3")
    assert (spec.image.id, spec.ready_file, spec.serve_port) == (image.content_id, True, 5050)
    assert (spec.environment["CLAVIER_SOCKET"], spec.environment["At"]) == (socket, "122")
    private = home / "files" / str(alice.tenant_id) / str(alice.user_id) / "private"
    assert [(mount.source, mount.target) for mount in spec.mounts] == [(f"{private}/lightgbm", "/dd")]


def test_an_image_that_starts_nothing_needs_a_command(engine, alice):
    image = make_image_version(alice)
    with pytest.raises(InvalidFields, match="neither an entrypoint nor a command") as refusal:
        create_service(actor=alice, name="own", image=image.pk, start=False)
    assert (refusal.value.code, refusal.value.field) == ("required", "command")


def test_an_own_server_is_asked_at_its_own_socket_whatever_it_wrote(engine, alice, settings):
    settings.CONTAINER_EXECUTORS = ("local_process",)
    image = make_image_version(alice, cmd=["serve"])
    create_service(actor=alice, name="own", image=image.pk, image_ports=[5050])
    become_ready(engine)
    run = Run.objects.get(kind="replica")
    place = run_folder(run.pk) / "work" / "server.sock"
    with pytest.raises(NoHealthyReplica):
        choose_upstreams(alice, "own")
    place.symlink_to("/run/docker.sock")
    with pytest.raises(NoHealthyReplica):
        choose_upstreams(alice, "own")
    place.unlink()
    folder = os.open(place.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/server.sock")  # the path itself may be too long
        if os.geteuid() == 0:
            with pytest.raises(NoHealthyReplica):  # the platform made it, not the tenant's program
                choose_upstreams(alice, "own")
            os.chown(place, 200_000 + run.tenant.number, -1)
        assert [upstream.run_id for upstream in choose_upstreams(alice, "own")] == [run.pk]
    os.close(folder)
