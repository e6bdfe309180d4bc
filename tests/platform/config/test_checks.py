"""What production refuses, and the health of the parts."""

from __future__ import annotations

import json

import pytest
from django.conf import settings as live
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import Client

from clavier.config import checks, environment, settings
from clavier.runs import leases, queue
from clavier.runs.queries import RECONCILER_LEASE


def problems(ids: set[str]) -> set[str]:
    return {problem.id for problem in run_checks() if problem.id in ids}


PRODUCTION = {"clavier.E010", "clavier.E011", "clavier.E012", "clavier.E013"}


@pytest.fixture
def production(settings):
    """Production settings that are all right."""
    settings.CLAVIER_ENVIRONMENT = "production"
    settings.DEBUG = False
    settings.SECRET_KEY = "k" * 60
    settings.ALLOW_CUSTOM_CODE = False
    settings.ALLOWED_HOSTS = ["clavier.example"]
    return settings


def test_good_production_settings_pass(production):
    assert problems(PRODUCTION) == set()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("DEBUG", True, "clavier.E010"),
        ("SECRET_KEY", "short", "clavier.E011"),
        ("ALLOW_CUSTOM_CODE", True, "clavier.E012"),
        ("ALLOWED_HOSTS", ["*"], "clavier.E013"),
    ],
)
def test_production_refuses_what_is_unsafe(production, name, value, problem):
    setattr(production, name, value)
    assert problems(PRODUCTION) == {problem}


def test_production_refuses_the_secret_that_the_embedded_default_made(production, home):
    (home / "secret_key").write_text("s" * 60)
    production.SECRET_KEY = "s" * 60
    assert problems(PRODUCTION) == {"clavier.E011"}


def test_the_embedded_default_is_not_held_to_that(settings):
    settings.DEBUG = True
    assert problems(PRODUCTION) == set()


def test_every_hook_and_executor_exists_and_a_missing_one_is_named(settings):
    assert checks.dotted_names_import(None) == []
    settings.EXECUTORS = {"x": "runner.executors.nothing.Nothing"}
    settings.RUN_FINISHED_HOOKS = {"fine_tune": "finetune_app.finished.on_run_finished"}
    assert {problem.id for problem in checks.dotted_names_import(None)} == {"clavier.E001", "clavier.E002"}


@pytest.mark.parametrize("text", ["yes please", "2", "tru"])
def test_a_flag_that_is_none_stops_the_start(monkeypatch, text):
    monkeypatch.setenv("SOME_FLAG", text)
    with pytest.raises(ImproperlyConfigured, match="SOME_FLAG"):
        environment.env_bool("SOME_FLAG", False)


@pytest.mark.parametrize("text", ["0", "70000", "8000.5", "many", "--1", ""])
def test_a_number_out_of_bounds_stops_the_start(monkeypatch, text):
    monkeypatch.setenv("SOME_NUMBER", text)
    with pytest.raises(ImproperlyConfigured, match="1 to 65535"):
        environment.env_int("SOME_NUMBER", 1, 1, 65535)


def test_an_unknown_word_stops_the_start(monkeypatch):
    monkeypatch.setenv("CLAVIER_EXECUTOR", "ray")
    with pytest.raises(ImproperlyConfigured, match="fake, local_process"):
        environment.env_choice("CLAVIER_EXECUTOR", "local_process", {"local_process", "fake"})


def test_a_deep_home_gets_a_short_folder_for_its_sockets(tmp_path):
    assert settings.socket_folder(tmp_path / "a") == tmp_path / "a" / "run" or len(str(tmp_path)) > 70
    assert len(str(settings.socket_folder(tmp_path / ("deep" * 30)) / "valkey.sock")) < 107


@pytest.mark.django_db
def test_readiness_names_each_part(home, monkeypatch):
    monkeypatch.setattr(queue, "ping", lambda: False)
    told = Client().get("/readyz")
    assert told.status_code == 503
    assert json.loads(told.content) == {
        "status": "not ready",
        "database": "ok",
        "queue": "does not answer; runs start by the reconciler, some seconds later",
        "reconciler": "no heartbeat; runs neither start nor end",
        "disk": "ok",
        "invariants": "not looked at yet",
    }
    monkeypatch.setattr(queue, "ping", lambda: True)
    assert leases.hold(RECONCILER_LEASE, "me", for_s=10)
    assert Client().get("/readyz").json()["status"] == "ok"
    assert Client().get("/healthz").json() == {"status": "ok"}


@pytest.mark.django_db
def test_one_holder_has_the_lease_until_it_ends():
    assert leases.hold("loop", "first", for_s=10)
    assert leases.hold("loop", "first", for_s=10)
    assert not leases.hold("loop", "second", for_s=10)
    leases.give_up("loop", "first")
    assert leases.hold("loop", "second", for_s=10)
    assert not leases.hold("loop", "first", for_s=10)


def test_a_queue_that_is_down_costs_no_request_more_than_a_moment(tmp_path, settings):
    settings.REDIS_URL = ""
    settings.CLAVIER_REDIS_SOCKET = tmp_path / "nobody.sock"
    queue.connection.cache_clear()
    queue.fast_queue.cache_clear()
    try:
        assert queue.connection().get_retry().get_retries() == 0
        assert queue.enqueue(queue.SCHEDULE_JOB) is False
        assert queue.ping() is False
    finally:
        queue.connection.cache_clear()
        queue.fast_queue.cache_clear()
    assert live.DEBUG is False


DOCKER = {"clavier.E020", "clavier.E021", "clavier.E022", "clavier.E023"}


@pytest.fixture
def with_docker(settings, monkeypatch):
    """Settings of a platform on Docker that are all right."""
    settings.CLAVIER_EXECUTOR = "docker_engine"
    options = {**settings.EXECUTOR_OPTIONS["docker_engine"], "program_image": "programs:1", "wrapper": "/bin/true"}
    settings.EXECUTOR_OPTIONS = {**settings.EXECUTOR_OPTIONS, "docker_engine": options}
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return options


def test_a_platform_on_docker_that_is_all_right_passes(with_docker, production):
    production.ALLOW_CUSTOM_CODE = True
    assert problems(PRODUCTION | DOCKER) == set()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("program_image", "", "clavier.E021"),
        ("program_binds", ("/no/such/folder",), "clavier.E022"),
        ("program_binds", ("relative",), "clavier.E022"),
        ("wrapper", "/no/such/wrapper", "clavier.E022"),
    ],
)
def test_docker_needs_an_image_and_what_is_bound_into_it(with_docker, name, value, problem):
    with_docker[name] = value
    assert problems(DOCKER) == {problem}


def test_docker_needs_root_and_a_wrapper_or_a_compiler(with_docker, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with_docker["wrapper"] = ""
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert problems(DOCKER) == {"clavier.E020", "clavier.E023"}
