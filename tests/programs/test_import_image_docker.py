"""Archives that a real engine saves, taken over, and given back to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.contract.images import engine_tag
from runner.programs.images import import_image
from tests.docker_engine import DockerDaemon, docker_daemon
from tests.programs.recipes import make_context
from tests.programs.test_import_image import parameters_of

__all__ = ["docker_daemon"]

pytestmark = [pytest.mark.slow, pytest.mark.docker]


def test_a_saved_image_keeps_its_id_through_import_and_load_and_takes_no_tag_over(
    docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    client, engine_images = docker_daemon.client, docker_daemon.images
    mine, other = engine_images.noop, engine_images.python
    # The archive claims the name of the platform's image, which stays with the other.
    client.tag(mine, "platform/trainer", "1", force=True)
    archive = engine_images.save("platform/trainer:1", tmp_path / "saved.tar")
    client.tag(other, "platform/trainer", "1", force=True)
    import_image.main(make_context(tmp_path / "run", parameters_of(archive)))
    facts = json.loads((tmp_path / "run/output/MANIFEST.json").read_text())["facts"]
    assert facts["image_id"] == mine
    assert "platform/trainer:1" in facts["warnings"][0]
    with open(tmp_path / "run/output/image.tar", "rb") as stream:
        list(client.load_image(stream))
    assert client.inspect_image(engine_tag(mine))["Id"] == mine
    assert client.inspect_image("platform/trainer:1")["Id"] == other
