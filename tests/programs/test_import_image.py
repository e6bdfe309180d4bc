"""Taking image archives over: what tools write is read, what is broken or hostile is refused in words."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from runner.contract.images import engine_tag
from runner.programs.images import import_image
from runner.programs.images.tar_stream import Gunzip
from runner.programs.lib.events import ProgramError, Stopped
from tests.image_tars import HandMade, docker_archive, image, layer_of, oci_archive, oci_manifest, sha256, tar_of
from tests.programs.recipes import events_of, make_context


def parameters_of(path: Path, **others: Any) -> dict[str, Any]:
    values = {"source": "tar", "location": str(path), "name": "dzq/45", "tag": "1", "os": "linux"}
    return {**values, "architectures": ["amd64"], "max_bytes": 1 << 30, **others}


def import_bytes(folder: Path, content: bytes, **others: Any) -> dict[str, Any]:
    """Import an archive; the facts of its manifest."""
    folder.mkdir(exist_ok=True)
    path = folder / "image.tar"
    path.write_bytes(content)
    import_image.main(make_context(folder / "run", parameters_of(path, **others)))
    manifest: dict[str, Any] = json.loads((folder / "run" / "output" / "MANIFEST.json").read_text())
    assert manifest["files"][0]["size"] == (folder / "run" / "output" / "image.tar").stat().st_size
    return dict(manifest["facts"])


def refusal(folder: Path, content: bytes, **others: Any) -> ProgramError:
    with pytest.raises(ProgramError) as refused:
        import_bytes(folder, content, **others)
    assert not (folder / "run" / "output" / "MANIFEST.json").exists()
    return refused.value


def saved(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the members of the archive that an import has written."""
    with tarfile.open(folder / "run" / "output" / "image.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    (entry,) = json.loads(members["manifest.json"])
    return entry, members


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_what_docker_saves_becomes_an_archive_of_our_own(tmp_path: Path, pack: Any) -> None:
    made = image(runtime={"User": "worker", "Entrypoint": ["/tini"], "ExposedPorts": {"80/tcp": {}}})
    facts = import_bytes(tmp_path, pack(docker_archive(made)))
    assert facts["image_id"] == made.id
    assert (facts["user"], facts["entrypoint"], facts["cmd"]) == ("worker", ["/tini"], ["/bin/hello"])
    assert (facts["env_names"], facts["exposed_ports"]) == (["PATH"], ["80/tcp"])
    assert [layer["diff_id"] for layer in facts["layers"]] == [sha256(layer) for layer in made.layers]
    entry, members = saved(tmp_path)
    assert entry["RepoTags"] == [engine_tag(made.id)]
    assert members[entry["Config"]] == made.config
    assert [members[name] for name in entry["Layers"]] == list(made.layers)
    last = events_of(tmp_path / "run", "progress")[-1]
    assert last["step"] == last["total_steps"] == (tmp_path / "image.tar").stat().st_size


@pytest.mark.parametrize("zipped", [True, False])
def test_an_oci_layout_is_the_same_image(tmp_path: Path, zipped: bool) -> None:
    made = image()
    assert import_bytes(tmp_path, oci_archive(made, zipped=zipped))["image_id"] == made.id
    entry, members = saved(tmp_path)
    assert [members[name] for name in entry["Layers"]] == list(made.layers)


def test_layers_that_tools_compressed_are_hashed_unpacked(tmp_path: Path) -> None:
    made = image()

    def squeeze(files: dict[str, bytes], _: list[dict[str, Any]]) -> None:
        for name, content in files.items():
            if name.endswith("layer.tar"):
                files[name] = gzip.compress(content)

    assert import_bytes(tmp_path, docker_archive(made, change=squeeze))["image_id"] == made.id


def test_a_layer_that_occurs_twice_is_kept_once(tmp_path: Path) -> None:
    layer = layer_of({"a": b"a"})
    made = image(layer, layer_of({"b": b"b"}), layer)
    assert len(import_bytes(tmp_path, docker_archive(made))["layers"]) == 3
    entry, members = saved(tmp_path)
    assert entry["Layers"][0] == entry["Layers"][2]
    assert len(members) == 4


def test_a_layer_that_docker_linked_to_its_twin_is_found(tmp_path: Path) -> None:
    layer = layer_of({"a": b"a"})
    made = image(layer, layer)
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}]
    files = {"1/layer.tar": layer, "c.json": made.config, "manifest.json": json.dumps(manifest).encode()}
    assert import_bytes(tmp_path, tar_of(files, {"2/layer.tar": "../1/layer.tar"}))["image_id"] == made.id


def test_of_several_images_the_tag_picks_one(tmp_path: Path) -> None:
    wanted, other = image(layer_of({"w": b"w"})), image(layer_of({"o": b"o"}))
    both = docker_archive(other, wanted, tags=[["x/y:1", "x/y:old"], ["dzq/45:1"]])
    assert import_bytes(tmp_path / "a", both)["image_id"] == wanted.id
    entry, members = saved(tmp_path / "a")
    assert set(members) == {entry["Config"], *entry["Layers"], "manifest.json"}
    assert import_bytes(tmp_path / "b", both, tag="old")["image_id"] == other.id
    error = refusal(tmp_path / "c", both, name="a/b")
    assert (error.code, error.field) == ("several_images", "tag")
    assert "x/y:old" in error.message


def test_a_tag_of_the_archive_is_never_taken_over(tmp_path: Path) -> None:
    facts = import_bytes(tmp_path, docker_archive(image(), tags=[["platform/trainer:1"]]))
    assert "platform/trainer:1" in facts["warnings"][0]
    assert "platform" not in saved(tmp_path)[0]["RepoTags"][0]


def test_what_the_platform_overrides_is_said(tmp_path: Path) -> None:
    runtime = {
        "Env": ["LD_PRELOAD=/x.so", "NVIDIA_VISIBLE_DEVICES=all", "A=1"],
        "Healthcheck": {"Test": ["CMD", "true"]},
    }
    warnings = import_bytes(tmp_path, docker_archive(image(runtime=runtime)))["warnings"]
    assert any("LD_PRELOAD, NVIDIA_VISIBLE_DEVICES" in warning for warning in warnings)
    assert any("HEALTHCHECK" in warning for warning in warnings)
    assert len(events_of(tmp_path / "run", "warning")) == len(warnings) == 3


def config_of(**changes: Any) -> HandMade:
    return image(runtime=changes.pop("runtime", None), **changes)


def flip_a_byte(files: dict[str, bytes], manifest: list[dict[str, Any]]) -> None:
    name = manifest[0]["Layers"][0]
    files[name] = files[name].replace(b"echo hello", b"echo hullo")


def edit_the_config(files: dict[str, bytes], manifest: list[dict[str, Any]]) -> None:
    name = manifest[0]["Config"]
    files[name] = files[name].replace(b"/bin/hello", b"/bin/evil!")


def spoil_the_manifest(files: dict[str, bytes], _: list[dict[str, Any]]) -> None:
    files["manifest.json"] = b"{"


def climb_out(_: dict[str, bytes], manifest: list[dict[str, Any]]) -> None:
    manifest[0]["Layers"] = ["../../x/layer.tar"]


def lose_a_layer(files: dict[str, bytes], manifest: list[dict[str, Any]]) -> None:
    del files[manifest[0]["Layers"][0]]


def many_layers() -> bytes:
    return docker_archive(image(*(layer_of({str(number): b""}) for number in range(128))))


def with_member(kind: bytes, name: str = "evil", target: str = "") -> bytes:
    """A good archive with one more member."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    return stream.getvalue().rstrip(b"\0").ljust(512, b"\0") + docker_archive(image())


def sparse_layer(real_size: int) -> bytes:
    """A layer of one GNU sparse file without any data that unpacks to ``real_size`` bytes."""
    member = tarfile.TarInfo("hole")
    member.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:482] = bytes(96)
    block[482] = 0
    block[483:495] = b"\x80" + real_size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block) + bytes(1024)


def header_of_100_mib() -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 100 << 20
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


REFUSED: list[tuple[str, bytes, str, list[str]]] = [
    ("an empty tar", bytes(10240), "bad_image", ["manifest.json", "docker save"]),
    ("random bytes", b"\xff" * 5000, "not_an_archive", ["image.tar", "docker save"]),
    ("an empty file", b"", "not_an_archive", ["no tar"]),
    ("bzip2", b"BZh91AY" + bytes(600), "not_an_archive", ["bzip2"]),
    ("half a gzip", gzip.compress(docker_archive(image()))[:400], "corrupt_archive", ["truncated"]),
    ("half a tar", docker_archive(image())[:1300], "corrupt_archive", ["truncated"]),
    ("a broken manifest", docker_archive(image(), change=spoil_the_manifest), "bad_image", ["manifest.json"]),
    ("a layer path outside", docker_archive(image(), change=climb_out), "path_outside_root", ["Layers"]),
    ("a missing layer", docker_archive(image(), change=lose_a_layer), "bad_image", ["Layers"]),
    ("a changed layer", docker_archive(image(), change=flip_a_byte), "bad_image", ["digest", "layer 1"]),
    ("a changed configuration", docker_archive(image(), change=edit_the_config), "bad_image", ["digest"]),
    ("128 layers", many_layers(), "bad_image", ["layers", "127"]),
    ("arm64", docker_archive(image(architecture="arm64")), "wrong_architecture", ["arm64", "amd64"]),
    ("windows", docker_archive(config_of(os="windows")), "wrong_architecture", ["windows", "linux"]),
    ("a volume", docker_archive(config_of(runtime={"Volumes": {"/big": {}}})), "volume_not_allowed", ["/big"]),
    ("a kernel folder", docker_archive(config_of(runtime={"WorkingDir": "/proc/self/fd/8"})), "bad_image", ["WORKDIR"]),
    ("a relative folder", docker_archive(config_of(runtime={"WorkingDir": "a/../../b"})), "bad_image", ["WORKDIR"]),
    ("a config of numbers", docker_archive(config_of(runtime={"Env": 7})), "bad_image", ["Env"]),
    ("an entry outside", with_member(tarfile.REGTYPE, "../x"), "path_outside_root", ["../x"]),
    ("an absolute entry", with_member(tarfile.REGTYPE, "/etc/x"), "path_outside_root", ["/etc/x"]),
    ("a link outside", with_member(tarfile.SYMTYPE, "a", "../../etc/passwd"), "link_not_allowed", ["etc/passwd"]),
    ("a hard link outside", with_member(tarfile.LNKTYPE, "a", "/etc/passwd"), "link_not_allowed", ["etc/passwd"]),
    ("a device", with_member(tarfile.CHRTYPE), "special_file_not_allowed", ["device", "evil"]),
    ("a fifo", with_member(tarfile.FIFOTYPE), "special_file_not_allowed", ["fifo", "evil"]),
    ("a PAX header of 100 MiB", header_of_100_mib(), "corrupt_archive", ["header"]),
    ("a layer of 1 TiB", docker_archive(image(sparse_layer(1 << 40))), "unpacked_too_large", ["unpacked", "1 GiB"]),
]


@pytest.mark.parametrize(
    ("content", "code", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_an_archive_is_refused_in_words(tmp_path: Path, content: bytes, code: str, words: list[str]) -> None:
    error = refusal(tmp_path, content)
    assert error.code == code
    for word in words:
        assert word in error.message


def test_twins_and_crowds_of_entries_are_refused(tmp_path: Path) -> None:
    twice = tar_of({"manifest.json": b"[]"})[:-9216] + tar_of({"manifest.json": b"[]"})
    assert refusal(tmp_path / "a", twice).code == "duplicate_entry"
    crowd = tar_of({str(number): b"" for number in range(10_001)})
    error = refusal(tmp_path / "b", crowd)
    assert (error.code, "10,000" in error.message) == ("too_many_entries", True)


def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    layer = layer_of({"zeros": bytes(40 << 20)})
    bomb = gzip.compress(docker_archive(image(layer)), 1)
    error = refusal(tmp_path, bomb, max_bytes=8 << 20)
    assert error.code == "unpacked_too_large"
    assert (tmp_path / "run" / "output" / "image.tar").stat().st_size < 10 << 20


def test_a_blob_whose_digest_differs_is_refused(tmp_path: Path) -> None:
    made = image()
    manifest = json.dumps(oci_manifest(made, list(made.layers))).encode()
    index = {"manifests": [{"digest": sha256(manifest)}]}
    files = {f"blobs/sha256/{sha256(blob)[7:]}": blob for blob in (*made.layers, made.config, manifest)}
    files[f"blobs/sha256/{made.id[7:]}"] = made.config.replace(b"/bin/hello", b"/bin/evil!")
    error = refusal(tmp_path, tar_of({"index.json": json.dumps(index).encode(), **files}))
    assert (error.code, "digest" in error.message) == ("bad_image", True)


def test_a_stop_is_heard_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(docker_archive(image()))
    context = make_context(tmp_path / "run", parameters_of(path))
    context.should_stop = True
    with pytest.raises(Stopped):
        import_image.main(context)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_gzip_of_several_members_is_read_in_pieces_of_any_size(cut: int) -> None:
    content = bytes(range(256)) * 40
    stream = io.BytesIO(gzip.compress(content[:5000]) + gzip.compress(content[5000:]) + bytes(700))
    reader = Gunzip(lambda count: stream.read(min(count, cut)), "x")
    pieces = []
    while piece := reader.read(333):
        assert len(piece) <= 333
        pieces.append(piece)
    assert b"".join(pieces) == content
