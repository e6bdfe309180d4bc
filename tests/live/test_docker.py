"""The platform on a Docker Engine: every run is a container, and the main job goes through."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clavier.demo.client import Client
from runner.contract.images import engine_tag
from tests.docker_engine import DockerDaemon, compiled, docker_daemon, program_binds, tar_of
from tests.live.conftest import REPOSITORY, Platform, wait_for

__all__ = ["docker_daemon"]

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(300)]

#: Writes a line into the file that its argument names.
MAKER = """
#include <stdio.h>
int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "w") : NULL;
    return file == NULL || fputs("made\\n", file) < 0 || fclose(file) != 0;
}
"""
MATERIAL = REPOSITORY / "examples" / "demo"


@pytest.fixture(scope="module")
def on_docker(docker_daemon: DockerDaemon) -> Iterator[Platform]:
    """A whole platform whose executor is the private engine."""
    home = Path("/tmp") / f"clavier-docker-live-{secrets.token_hex(4)}"
    home.mkdir(mode=0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "DJANGO"))}
    environment |= {
        "CLAVIER_HOME": str(home),
        "CLAVIER_EXECUTOR": "docker_engine",
        "DOCKER_ENGINE_URL": docker_daemon.url,
        "DOCKER_PROGRAM_IMAGE": docker_daemon.images.python,
        "DOCKER_PROGRAM_PYTHON": sys.executable,
        "DOCKER_PROGRAM_BINDS": ",".join(program_binds()),
    }
    made = Platform(home, environment=environment)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.terminate()
            made.process.wait(timeout=60)
        docker_daemon.remove_containers()
        subprocess.run(["rm", "-rf", str(home)], check=False)


def train(client: Client, daemon: DockerDaemon, recipe: str, data: str, steps: int, **more: Any) -> dict[str, Any]:
    """A completed task; while it ran there was one container of it, which is gone afterwards."""
    knobs = json.loads((MATERIAL / f"{recipe}.json").read_text())
    knobs["hyperparameters"] |= {"max_steps": steps, "save_steps": steps, "logging_steps": 5}
    body = {"name": f"docker-{recipe}", "train_dataset": data, **knobs, **more}
    path = f"/api/v1/fine-tune-tasks/{client.post('/api/v1/fine-tune-tasks', body)['id']}"
    [container] = wait_for("the container", lambda: daemon.client.containers(), 30)
    labels = container["Labels"]
    assert (labels["clavier.kind"], labels["clavier.tenant"]) == ("fine_tune", "dora")
    assert container["HostConfig"]["NetworkMode"] == "none"
    client.wait_for_run(path, lambda status: None, limit_s=120)
    wait_for("the container is gone", lambda: daemon.client.containers(all=True) == [], 30)
    task = client.get(path)
    assert "step " in client.get(f"{path}/log", offset=0)["text"]
    return task


def test_the_main_job_goes_through_containers(on_docker: Platform, docker_daemon: DockerDaemon) -> None:
    client = on_docker.client_of(on_docker.create_user("dora")["api_key"])
    corpus = client.upload_dataset("corpus", MATERIAL / "corpus.txt")["newest_version"]["id"]
    faq = client.upload_dataset("faq", MATERIAL / "faq.jsonl")["newest_version"]["id"]
    base = train(client, docker_daemon, "pretrain", corpus, 10)["output_version"]
    tuned = train(client, docker_daemon, "sft", faq, 10, base_model=base["id"])["output_version"]
    service = client.post("/api/v1/services", {"name": "on-docker", "model_version": tuned["id"]})
    client.wait_until_served(f"/api/v1/services/{service['id']}", limit_s=60)
    [container] = docker_daemon.client.containers()
    assert (container["Labels"]["clavier.kind"], container["Ports"]) == ("replica", [])
    assert isinstance(client.chat("on-docker", "Hello", max_tokens=4), str)
    client.post(f"/api/v1/services/{service['id']}/stop")
    wait_for("the server is gone", lambda: docker_daemon.client.containers(all=True) == [], 30)
    assert "Traceback" not in on_docker.log()


def test_an_image_of_a_tenant_is_imported_and_runs_its_command(
    on_docker: Platform, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    client = on_docker.client_of(on_docker.create_user("emil")["api_key"])
    maker = docker_daemon.images.import_tar(tar_of({"maker": compiled(MAKER)}), "maker")
    archive = docker_daemon.images.save("test:maker", tmp_path / "maker.tar")
    docker_daemon.client.remove_image("test:maker", force=True)
    with open(archive, "rb") as stream:
        [file] = client._json("POST", "/api/v1/files", files={"file": ("maker.tar", stream)})["items"]
    image = client.post("/api/v1/images", {"name": "emil/maker"})
    version = client.post(f"/api/v1/images/{image['id']}/import-archive", {"tag": "1", "file": file["id"]})
    path = f"/api/v1/image-versions/{version['id']}"
    version = wait_for("the import", lambda: (now := client.get(path))["state"] != "importing" and now, 60)
    assert (version["state"], version["content_id"]) == ("ready", maker), version["message"]
    task = client.post(
        "/api/v1/fine-tune-tasks/custom",
        {"name": "made", "command": "/maker ${output_dir}/made.txt", "image": version["id"]},
    )
    client.wait_for_run(f"/api/v1/fine-tune-tasks/{task['id']}", lambda status: None, limit_s=60)
    [output] = (on_docker.home / "runs").glob("*/output/made.txt")
    assert output.read_text() == "made\n"
    tags = docker_daemon.client.inspect_image(maker)["RepoTags"]
    assert tags == [engine_tag(maker)]
    collected = on_docker.manage("collect_images", "--dry-run")
    assert collected.returncode == 0, collected.stderr
    assert maker not in collected.stdout


def test_a_training_outlives_its_engine_and_the_platform_waits_for_news(
    on_docker: Platform, docker_daemon: DockerDaemon
) -> None:
    client = on_docker.client_of(on_docker.create_user("frida")["api_key"])
    corpus = client.upload_dataset("corpus", MATERIAL / "corpus.txt")["newest_version"]["id"]
    knobs = json.loads((MATERIAL / "pretrain.json").read_text())
    knobs["hyperparameters"] |= {"max_steps": 60, "save_steps": 60, "logging_steps": 5}
    task = client.post("/api/v1/fine-tune-tasks", {"name": "survivor", "train_dataset": corpus, **knobs})
    path = f"/api/v1/fine-tune-tasks/{task['id']}"
    wait_for("the first step", lambda: "metric" in client.get(f"{path}/status")["progress"], 90)
    docker_daemon.kill()
    try:
        wait_for("the platform notices", lambda: "does not answer" in on_docker.log(), 60)
        assert client.get(f"{path}/status")["state"] == "RUNNING"
    finally:
        docker_daemon.start()
    client.wait_for_run(path, lambda status: None, limit_s=180)
    assert "step 60/60" in client.get(f"{path}/log", offset=-4000)["text"]
    [run] = client.get("/api/v1/runs")["items"]
    assert len(client.get(f"/api/v1/runs/{run['id']}")["attempts"]) == 1
