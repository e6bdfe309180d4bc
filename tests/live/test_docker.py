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
import requests

from clavier.demo.client import Client
from runner.contract.images import engine_tag
from tests.docker_engine import DockerDaemon, compiled, docker_daemon, program_binds, tar_of
from tests.live.conftest import REPOSITORY, Platform, wait_for
from tests.programs.tiny_models import write_tiny_model

__all__ = ["docker_daemon"]

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(300)]

#: Copies files of the folder that its first argument names into that of its second.
COPIER = """
#include <stdio.h>
int main(int argc, char **argv) {
    char path[4096], piece[65536];
    for (int number = 3; number < argc; number++) {
        snprintf(path, sizeof path, "%s/%s", argv[1], argv[number]);
        FILE *from = fopen(path, "r");
        snprintf(path, sizeof path, "%s/%s", argv[2], argv[number]);
        FILE *to = fopen(path, "w");
        if (from == NULL || to == NULL) return 1;
        for (size_t size; (size = fread(piece, 1, sizeof piece, from)) > 0;)
            if (fwrite(piece, 1, size, to) != size) return 1;
        if (fclose(to) != 0) return 1;
        printf("%s\\n", argv[number]);
    }
    return 0;
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


class Legacy:
    """The platform API of document 001 for one user."""

    def __init__(self, platform: Platform, name: str) -> None:
        self.origin = platform.origin
        self.headers = {"Authorization": f"Bearer {platform.create_user(name)['api_key']}", "Accept-Language": "en"}

    def upload(self, file: Path, folder: str) -> None:
        with open(file, "rb") as stream:
            answer = requests.post(
                f"{self.origin}/api/file/file/uploadFolder", headers=self.headers, timeout=60,
                files={"file": (file.name, stream)}, data={"currentPath": folder},
            )  # fmt: skip
        assert answer.json()["success"], answer.text

    def post(self, route: str, body: dict[str, Any] | None = None) -> Any:
        answer = requests.post(f"{self.origin}{route}", headers=self.headers, json=body or {}, timeout=60)
        assert answer.json()["success"], answer.text
        return answer.json().get("data") or answer.json().get("result")

    def detail(self, task: str) -> dict[str, Any]:
        found: dict[str, Any] = self.post(f"/kernel/fineTune/queryLlmFineTuneTaskDetail?taskId={task}")
        return found

    def version(self, model: str) -> dict[str, Any]:
        url = f"{self.origin}/model/aiApplicationVersion/getAiApplicationVersionList?aiApplicationId={model}"
        [version] = requests.get(url, headers=self.headers, timeout=60).json()["data"]
        assert isinstance(version, dict)
        return version


def test_own_code_of_an_uploaded_image_makes_a_model_through_document_001(
    on_docker: Platform, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    user = Legacy(on_docker, "emil")
    copier = docker_daemon.images.import_tar(tar_of({"copier": compiled(COPIER)}), "copier")
    archive = docker_daemon.images.save("test:copier", tmp_path / "copier.tar")
    docker_daemon.client.remove_image("test:copier", force=True)
    model = write_tiny_model(tmp_path / "tiny", "qwen2")
    user.upload(archive, "/emil")
    for file in model.iterdir():
        user.upload(file, "/tiny")
    user.post("/docker/image/upload", {"imageName": "emil/copier", "imageLabel": [], "imageDescribe": "copies"})
    imported = {"imageName": "emil/copier", "imageTag": "1", "fileUrl": "emil/copier.tar"}
    version = user.post("/docker/image/uploadOld", imported)["imageVersionId"]
    client = on_docker.client_of(user.headers["Authorization"].removeprefix("Bearer "))
    path = f"/api/v1/image-versions/{version}"
    ready = wait_for("the import", lambda: (now := client.get(path))["state"] != "importing" and now, 60)
    assert (ready["state"], ready["content_id"]) == ("ready", copier), ready["message"]
    task = user.post("/kernel/fineTune/createLlmFineTuneTask", {
        "name": "copied", "createWay": "custom", "image": "emil/copier:1", "originModelDir": "/tiny",
        "command": f"/copier ${{model_dir}} ${{output_dir}} {' '.join(file.name for file in model.iterdir())}",
        "outputDir": "/made", "resource": [{"nodeType": "master", "numbers": 1, "cpuNumber": 1, "memory": 1}],
    })["taskId"]  # fmt: skip
    ended = ("Succeeded", "Failed", "Stopped")
    found = wait_for("the task", lambda: (now := user.detail(task))["status"] in ended and now, 90)
    assert (found["status"], found["error"]) == ("Succeeded", ""), found["message"]
    made = user.post("/model/aiApplication/createAiApplication", {
        "application": {"name": "copied", "type": "LLM"},
        "aiApplicationVersionList": [{"version": "0.0.1", "source": 1, "llmFineTuneTaskId": task}],
    })["application"]["id"]  # fmt: skip
    registered = wait_for("the model", lambda: (now := user.version(made))["status"] == 2 and now, 90)
    assert (registered["source"], registered["llmFineTuneTaskId"]) == (1, task)
    assert int(registered["size"]) > 0
    [visible] = client.get("/api/v1/files", folder="made", limit=1)["items"]
    assert visible["path"].startswith("made/")
    tags = docker_daemon.client.inspect_image(copier)["RepoTags"]
    assert tags == [engine_tag(copier)]
    collected = on_docker.manage("collect_images", "--dry-run")
    assert collected.returncode == 0, collected.stderr
    assert copier not in collected.stdout
