"""The images' recipes: what they copy and who they are; built offline where there is a Docker Engine."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from runner.executors.docker_wrapper import _FLAGS
from tests.docker_engine import DockerDaemon, docker_daemon, interpreter_tar, shared_libraries

__all__ = ["docker_daemon"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "runner" / "dockerfiles"
PROGRAM_IMAGES = ("train", "evaluate", "serve")
IMAGES = (*PROGRAM_IMAGES, "web")
INSTRUCTIONS = {"ARG", "FROM", "LABEL", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD", "ENTRYPOINT"}


def steps(name: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, continued lines joined."""
    text = "\n".join(
        line for line in (FOLDER / f"{name}.Dockerfile").read_text().splitlines() if not line.startswith("#")
    )
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def values(name: str, instruction: str) -> list[str]:
    return [rest for found, rest in steps(name) if found == instruction]


@pytest.mark.parametrize("name", IMAGES)
def test_every_step_is_a_known_one_and_every_copied_path_exists(name: str) -> None:
    assert {instruction for instruction, _ in steps(name)} <= INSTRUCTIONS
    for copied in values(name, "COPY"):
        sources = [word for word in copied.split()[:-1] if not word.startswith("--")]
        if "--from" not in copied:
            assert all((ROOT / source).exists() for source in sources), copied


@pytest.mark.parametrize("name", IMAGES)
def test_the_base_can_be_another_and_names_no_host(name: str) -> None:
    (base,) = [rest for rest in values(name, "ARG") if rest.startswith("BASE_IMAGE=")]
    assert re.fullmatch(r"BASE_IMAGE=[a-z]+(/[a-z-]+)?:[\w.-]+", base)
    assert all(rest.startswith("${BASE_IMAGE}") for rest in values(name, "FROM"))


@pytest.mark.parametrize("name", PROGRAM_IMAGES)
def test_a_program_image_holds_programs_and_their_contract_and_is_nobody(name: str) -> None:
    copied = [rest.split()[0] for rest in values(name, "COPY")]
    assert [path for path in copied if path.startswith("runner")] == [
        "runner/__init__.py", "runner/contract", "runner/programs",
    ]  # fmt: skip
    assert not {path for path in copied if path.startswith(("platform", "models_app", "manage"))}
    assert values(name, "USER") == ["65534:65534"]


@pytest.mark.parametrize("name", IMAGES)
def test_commands_are_lists_and_labels_say_what_it_is(name: str) -> None:
    (command,) = values(name, "CMD")
    assert json.loads(command)[0] in ("python", "python3")
    assert "org.opencontainers.image.title" in values(name, "LABEL")[0]


def test_the_wrapper_is_built_as_the_executor_would_build_it() -> None:
    (build,) = [rest for rest in values("web", "RUN") if rest.startswith("cc ")]
    assert build.split()[1:-1] == [*_FLAGS, "-o", "/wrapper"]


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.parametrize("name", PROGRAM_IMAGES)
def test_a_program_image_is_built_offline_and_runs_the_import_as_nobody(docker_daemon: DockerDaemon, name: str) -> None:
    """On a base made of the interpreter that runs this test; nothing is fetched."""
    base, tag = docker_daemon.images.import_tar(base_tar(), "base"), f"clavier/test-{name}"
    install = [] if name == "serve" else ["--build-arg", "INSTALL=no"]
    built = docker(
        docker_daemon, "build", "--network", "none", "-t", tag, "--build-arg", f"BASE_IMAGE={base}", *install,
        "-f", str(FOLDER / f"{name}.Dockerfile"), str(ROOT),
    )  # fmt: skip
    assert built.returncode == 0, built.stderr + built.stdout
    code = "import os, runner.programs.images.import_image; print(os.getuid(), runner.__file__)"
    ran = docker(docker_daemon, "run", "--rm", "--network", "none", "--read-only", tag, "python3", "-c", code)
    assert ran.stdout.split() == ["65534", "/opt/clavier/runner/__init__.py"], ran.stderr


def docker(daemon: DockerDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The client on the tests' own engine, with the builder that needs no plug-in."""
    environment = {"PATH": os.environ["PATH"], "DOCKER_BUILDKIT": "0"}
    command = ["docker", "-H", daemon.url, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def base_tar() -> bytes:
    """The interpreter under the name that images give it, and a shell for the recipes' steps."""
    shell = Path(os.path.realpath("/bin/sh"))
    buffer = io.BytesIO(interpreter_tar())
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.add(shell, "bin/sh")
        for path in sorted(shared_libraries([shell]) - {f"/{name}" for name in tar.getnames()}):
            tar.add(os.path.realpath(path), path[1:], recursive=False)
        link = tarfile.TarInfo("usr/local/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, os.path.realpath(sys.executable)
        tar.addfile(link)
    return buffer.getvalue()
