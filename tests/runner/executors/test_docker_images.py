"""Images by id: loaded from archives, kept by a name of ours, refused in words."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.contract.images import engine_tag
from runner.contract.run_spec import Image, RunSpec
from runner.executors.base import ExecutorError, ImageStore, Observation
from runner.executors.docker_images import ImageUnfit, only_image
from tests.docker_engine import NOOP, DockerDaemon, compiled, tar_of
from tests.runner.executors.bench import DockerBench, make_launch, seen, wait_until_exited

pytestmark = pytest.mark.docker

NOTHING = "sha256:" + "0" * 64


@pytest.fixture
def archived(docker_daemon: DockerDaemon, tmp_path: Path) -> Iterator[Image]:
    """An image that the engine has forgotten, in an archive."""
    image = docker_daemon.images.import_tar(tar_of({"noop": compiled(NOOP), "own": b"x"}), "archived")
    path = docker_daemon.images.save("test:archived", tmp_path / "image.tar")
    docker_daemon.client.remove_image("test:archived", force=True)
    yield Image(image, str(path))
    if docker_daemon.client.images(filters={"reference": engine_tag(image)}):
        docker_daemon.client.remove_image(engine_tag(image), force=True)


def refused(docker: DockerBench, folder: Path, image: Image, **spec: object) -> Observation:
    """How an attempt ends whose image can not be used."""
    executor = docker.executor()
    launch = make_launch(folder, "a", argv=("/noop",), image=image, **spec)
    executor.start(launch)
    while (now := seen(executor, "a")) is None or now.state == "starting":
        executor.start(launch)
    assert now.cause == "image_unavailable"
    assert json.loads((launch.run_folder / "result.json").read_text())["message"] == now.warning
    return now


def test_an_image_is_loaded_from_its_archive_while_the_attempt_is_starting(
    docker: DockerBench, archived: Image, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    launches = [make_launch(tmp_path, name, argv=("/noop", "x", "y"), image=archived) for name in ("a", "b")]
    for launch in launches:
        executor.start(launch)
        first = seen(executor, launch.name)
        assert first is not None
        assert (first.state, first.cause) == ("starting", None)
    with pytest.raises(ExecutorError, match="is starting"):
        executor.remove("a")
    for launch in launches:
        while (now := seen(executor, launch.name)) is not None and now.state == "starting":
            executor.start(launch)
        assert wait_until_exited(executor, launch.name).exit_code == 2
    assert docker_daemon.client.inspect_image(archived.id)["RepoTags"] == [engine_tag(archived.id)]
    store: ImageStore = executor
    assert archived.id in {image.id for image in store.images()}
    assert all(image.size_bytes > 0 for image in store.images())
    for launch in launches:
        executor.remove(launch.name)
    assert store.has_image(archived.id)
    store.remove_image(archived.id)
    store.remove_image(archived.id)
    assert not store.has_image(archived.id)


def test_an_image_of_the_operator_survives_that_we_no_longer_keep_it(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    image = docker_daemon.images.noop
    executor.start(make_launch(tmp_path, "a", argv=("/noop",), image=Image(image)))
    assert wait_until_exited(executor, "a").exit_code == 0
    assert image in {kept.id for kept in executor.images()}
    executor.remove_image(image)
    assert image not in {kept.id for kept in executor.images()}
    assert docker_daemon.client.inspect_image(image)["RepoTags"] == ["test:noop"]


def test_an_image_that_a_container_uses_is_not_removed(docker: DockerBench, archived: Image, tmp_path: Path) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", argv=("/noop",), image=archived)
    executor.start(launch)
    while (now := seen(executor, "a")) is not None and now.state == "starting":
        executor.start(launch)
    wait_until_exited(executor, "a")
    with pytest.raises(ExecutorError, match="using"):
        executor.remove_image(archived.id)
    executor.remove("a")
    executor.remove_image(archived.id)


def test_an_image_that_nobody_has_is_unavailable_in_words(docker: DockerBench, tmp_path: Path) -> None:
    assert "no archive of it is known" in refused(docker, tmp_path, Image(NOTHING)).warning


def test_a_missing_archive_is_named(docker: DockerBench, tmp_path: Path) -> None:
    assert "/gone.tar is missing" in refused(docker, tmp_path, Image(NOTHING, f"{tmp_path}/gone.tar")).warning


def test_an_archive_with_another_image_is_refused_and_not_loaded(
    docker: DockerBench, archived: Image, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    before = {image["Id"] for image in docker_daemon.client.images(all=True)}
    assert "holds another image" in refused(docker, tmp_path, Image(NOTHING, archived.archive)).warning
    assert {image["Id"] for image in docker_daemon.client.images(all=True)} == before


@pytest.mark.parametrize("content", [b"no tar", b"", tar_of({"x": b"y"}), tar_of({"manifest.json": b"[{}]"})])
def test_what_is_no_image_archive_is_refused(docker: DockerBench, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    assert "no image archive" in refused(docker, tmp_path, Image(NOTHING, f"{tmp_path}/bad.tar")).warning


def test_a_volume_is_refused(docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path) -> None:
    assert "VOLUME /data" in refused(docker, tmp_path, Image(docker_daemon.images.with_volume)).warning


def test_an_id_is_an_id_and_no_tag(docker: DockerBench, tmp_path: Path) -> None:
    assert "is no image id" in refused(docker, tmp_path, Image("test:noop")).warning


def test_an_image_for_another_architecture_is_refused(
    docker: DockerBench, docker_daemon: DockerDaemon, archived: Image, tmp_path: Path
) -> None:
    path = tmp_path / "arm.tar"
    image = with_config(str(archived.archive), path, architecture="arm64")
    warning = refused(docker, tmp_path, Image(image, str(path))).warning
    assert "made for linux/arm64; this engine runs linux/amd64" in warning
    docker_daemon.client.remove_image(image, force=True)


def test_an_image_without_an_interpreter_can_not_run_a_platform_program(
    docker: DockerBench, docker_daemon: DockerDaemon, tmp_path: Path
) -> None:
    executor = docker.executor()
    launch = make_launch(tmp_path, "a", argv=("x",))
    spec = RunSpec("model_import", "runner.programs.models.import_model", {}, image=Image(docker_daemon.images.noop))
    (launch.run_folder / "spec.json").write_text(json.dumps(spec.to_json()))
    executor.start(type(launch)("a", launch.run_folder, spec, 7, {}))
    ended = wait_until_exited(executor, "a")
    assert (ended.exit_code, ended.cause) == (127, "image_unavailable")
    assert "no interpreter" in ended.warning
    assert "command not run: python3: No such file" in (launch.run_folder / "log.txt").read_text()


def test_an_archive_can_not_take_over_the_name_of_another_image(
    docker_daemon: DockerDaemon, archived: Image, tmp_path: Path
) -> None:
    names = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(only_image(str(archived.archive), archived.id)))) as tar:
        for member in tar:
            names[member.name] = tar.extractfile(member)
        manifest = json.loads(tar.extractfile("manifest.json").read())
    assert len(manifest) == 1
    assert manifest[0]["RepoTags"] is None
    assert not {"repositories", "index.json"} & set(names)
    with tarfile.open(str(archived.archive)) as tar:
        assert json.loads(tar.extractfile("manifest.json").read())[0]["RepoTags"] == ["test:archived"]


def test_an_archive_that_is_cut_off_is_refused(archived: Image, tmp_path: Path) -> None:
    path = Path(str(archived.archive))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageUnfit, match=r"can not be read|no image archive"):
        b"".join(only_image(str(path), archived.id))


def with_config(archive: str, path: Path, **changes: str) -> str:
    """The archive again with another configuration; the id of that image."""
    import hashlib

    with tarfile.open(archive) as source, tarfile.open(path, "w") as target:
        manifest = json.loads(source.extractfile("manifest.json").read())
        config = json.loads(source.extractfile(manifest[0]["Config"]).read()) | changes
        content = json.dumps(config).encode()
        digest = hashlib.sha256(content).hexdigest()
        files = {f"{digest}.json": content}
        files["manifest.json"] = json.dumps([manifest[0] | {"Config": f"{digest}.json"}]).encode()
        for member in source:
            if member.name not in ("manifest.json", "repositories", manifest[0]["Config"]):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return f"sha256:{digest}"
