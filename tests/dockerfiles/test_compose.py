"""compose.yaml, .env.example and nginx.conf say what docs/deploy.md promises; the tools that read them agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.yaml"
PLATFORM = ("prepare", "web", "front", "worker", "reconciler")
SECRETS = ("SECRET_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def mounted(service: dict[str, Any]) -> list[str]:
    return [str(volume) for volume in service.get("volumes", [])]


def test_only_worker_and_reconciler_hold_the_sockets_of_the_engine(compose: dict[str, Any]) -> None:
    holders = {name for name, service in compose["services"].items() if "docker.sock" in " ".join(mounted(service))}
    assert holders == {"worker", "reconciler"}


def test_every_platform_process_is_confined_and_sees_the_data_under_its_own_path(compose: dict[str, Any]) -> None:
    for name in PLATFORM:
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert set(service["cap_add"]) == {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "${CLAVIER_HOME}:${CLAVIER_HOME}" in mounted(service)
        assert not service.get("privileged")


def test_only_nginx_is_reached_from_outside(compose: dict[str, Any]) -> None:
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["nginx"]


def test_servers_have_healthchecks_and_the_others_wait_for_them(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {name for name in services if "healthcheck" in services[name]} == {
        "postgres", "redis", "web", "front", "nginx",
    }  # fmt: skip
    for name in ("web", "front", "worker", "reconciler"):
        assert services[name]["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
    assert {need["condition"] for need in services["prepare"]["depends_on"].values()} == {"service_healthy"}


def test_secrets_have_no_defaults_and_every_variable_is_in_the_example() -> None:
    text = COMPOSE.read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert used <= set(example())
    for name in SECRETS:
        assert example()[name] == ""
        assert not re.search(rf"\$\{{{name}:?-", text)
        assert f"${{{name}:?" in text
    assert "appendonly" in text


def test_settings_of_the_stack_exist(compose: dict[str, Any]) -> None:
    settings = (ROOT / "platform/clavier/config/settings.py").read_text()
    for name in compose["x-environment"]:
        assert f'"{name}"' in settings, name


def test_nginx_passes_bodies_and_streams_on_and_believes_no_client() -> None:
    text = (ROOT / "runner/dockerfiles/nginx.conf").read_text()
    for line in (
        "client_max_body_size 0;", "proxy_request_buffering off;", "proxy_buffering off;",
        "proxy_set_header X-Forwarded-For $remote_addr;", "proxy_set_header X-Forwarded-Proto $scheme;",
        "server unix:/run/clavier/web.sock;",
    ):  # fmt: skip
        assert line in text


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_reads_its_configuration(tmp_path: Path) -> None:
    text = (ROOT / "runner/dockerfiles/nginx.conf").read_text()
    text = text.replace("server front:8000", "server 127.0.0.1:8000").replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_reads_it_and_refuses_to_start_without_secrets(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], **example(), **dict.fromkeys(SECRETS, "x" * 60)}
    (tmp_path / "empty").touch()
    command = ["docker-compose", "--env-file", str(tmp_path / "empty"), "-f", str(COMPOSE), "config", "-q"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    del environment["SECRET_KEY"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "see .env.example" in refused.stderr
