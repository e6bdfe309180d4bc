"""Pulling images: from a real registry on loopback, through logins, lists, redirects, and broken connections."""

from __future__ import annotations

import base64
import gzip
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.contract import exits
from runner.programs.images import import_image, registry
from runner.programs.images.layers import Bounds
from runner.programs.lib import outbound
from runner.programs.lib.events import ProgramError
from runner.programs.lib.outbound import Outbound, is_public
from tests.image_tars import image, layer_of, oci_manifest, sha256
from tests.programs.recipes import make_context
from tests.programs.test_import_image import saved
from tests.registries import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    PROGRAM,
    RealRegistry,
    StubRegistry,
    real_registry,
    stub_registry,
)

#: bcrypt of "secret-9".
HTPASSWD = "alice:$2b$05$aaaaaaaaaaaaaaaaaaaaaOg8onjFutg1kcazKMfd..maqzMyH5rpy"
needs_registry = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="Debian's docker-registry is not installed")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealRegistry]:
    with real_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def stub() -> Iterator[StubRegistry]:
    with stub_registry() as running:
        yield running


def pull(folder: Path, address: str, reference: str = "1", **others: Any) -> dict[str, Any]:
    """Pull ``team/app``; the facts of the manifest."""
    values = {
        "source": "registry", "address": address, "repository": "team/app", "reference": reference,
        "allowed": [address], "name": "app", "tag": "1", "os": "linux", "architectures": ["amd64"],
        "max_bytes": 1 << 30,
    }  # fmt: skip
    import_image.main(make_context(folder / "run", {**values, **others}))
    manifest = json.loads((folder / "run" / "output" / "MANIFEST.json").read_text())
    found: dict[str, Any] = manifest["facts"]
    return found


def refusal(folder: Path, address: str, reference: str = "1", **others: Any) -> ProgramError:
    with pytest.raises(ProgramError) as refused:
        pull(folder, address, reference, **others)
    return refused.value


def credentials(folder: Path, password: str) -> str:
    path = folder / "login.json"
    path.write_text(json.dumps({"username": "alice", "password": password}))
    return str(path)


@needs_registry
def test_a_pushed_image_is_pulled_by_tag_and_by_digest(tmp_path: Path, real: RealRegistry) -> None:
    made = image()
    digest = real.push(made, "team/app", "1")
    facts = pull(tmp_path, real.address)
    assert (facts["image_id"], facts["digest"]) == (made.id, digest)
    entry, members = saved(tmp_path)
    assert [members[name] for name in entry["Layers"]] == list(made.layers)
    assert pull(tmp_path / "again", real.address, digest)["image_id"] == made.id


@needs_registry
def test_of_a_list_the_image_for_this_machine_is_taken(tmp_path: Path, real: RealRegistry) -> None:
    wanted, other = image(layer_of({"amd": b"1"})), image(layer_of({"arm": b"1"}), architecture="arm64")
    entries = []
    for made, architecture in ((other, "arm64"), (wanted, "amd64")):
        blobs = [gzip.compress(layer, mtime=0) for layer in made.layers]
        content = json.dumps(oci_manifest(made, blobs)).encode()
        entries.append(
            {
                "mediaType": MANIFEST_TYPE, "digest": real.push(made, "team/app", architecture), "size": len(content),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
    real.push_manifest("team/app", "1", INDEX_TYPE, index)
    facts = pull(tmp_path, real.address)
    assert (facts["image_id"], facts["digest"]) == (wanted.id, entries[1]["digest"])
    error = refusal(tmp_path / "other", real.address, architectures=["riscv64"])
    assert (error.code, "linux/arm64" in error.message) == ("wrong_architecture", True)


@needs_registry
def test_an_image_or_repository_that_is_not_there_is_named(tmp_path: Path, real: RealRegistry) -> None:
    error = refusal(tmp_path, real.address)
    assert (error.code, error.field) == ("image_not_found", "reference")
    assert "team/app:1" in error.message


@needs_registry
def test_a_password_opens_a_closed_registry(tmp_path: Path) -> None:
    with real_registry(tmp_path / "registry", HTPASSWD, ("alice", "secret-9")) as closed:
        made = image()
        closed.push(made, "team/app", "1")
        error = refusal(tmp_path, closed.address)
        assert (error.code, "wants a login" in error.message) == ("login_needed", True)
        wrong = credentials(tmp_path, "secret-0")
        error = refusal(tmp_path, closed.address, credentials=wrong)
        assert (error.code, "secret-0" in error.message) == ("login_needed", False)
        good = credentials(tmp_path, "secret-9")
        assert pull(tmp_path, closed.address, credentials=good)["image_id"] == made.id


def test_a_token_is_fetched_with_the_login_where_the_registry_says(tmp_path: Path, stub: StubRegistry) -> None:
    stub.hold(made := image(), "1")
    stub.token, stub.login = "t0ken", f"Basic {base64.b64encode(b'alice:secret-9').decode()}"
    assert refusal(tmp_path, stub.address).code == "login_needed"
    assert pull(tmp_path, stub.address, credentials=credentials(tmp_path, "secret-9"))["image_id"] == made.id
    token_request = next(path for path, _ in stub.asked if path.startswith("/token"))
    assert token_request == "/token?service=stub&scope=repository%3Ateam%2Fapp%3Apull"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_goes_on_at_the_same_byte(
    tmp_path: Path, stub: StubRegistry, monkeypatch: pytest.MonkeyPatch, knows_ranges: bool
) -> None:
    monkeypatch.setattr(registry, "BACK_OFF_S", 0)
    layer = layer_of({"noise": bytes(hash((number, 7)) % 256 for number in range(40_000))})
    stub.hold(made := image(layer), "1", [layer])
    stub.breaks_at, stub.knows_ranges = 15_000, knows_ranges
    if knows_ranges:
        assert pull(tmp_path, stub.address)["image_id"] == made.id
        ranges = [headers["Range"] for path, headers in stub.asked if "Range" in headers]
        assert ranges == ["bytes=15000-", "bytes=30000-", "bytes=45000-"]
    else:
        error = refusal(tmp_path, stub.address)
        assert (error.code, error.exit_code, "at byte 15,000" in error.message) == (
            "host_unreachable", exits.UNREACHABLE, True,
        )  # fmt: skip


def test_a_changed_layer_or_configuration_is_refused(tmp_path: Path, stub: StubRegistry) -> None:
    made = image()
    (blob, *_) = stub.hold(made, "1", list(made.layers))
    kind, _ = stub.answers[f"blobs/{sha256(blob)}"]
    changed = blob.replace(b"echo hello", b"echo hullo")
    stub.answers[f"blobs/{sha256(blob)}"] = (kind, changed)
    assert "digest" in refusal(tmp_path, stub.address).message
    stub.answers[f"blobs/{made.id}"] = (kind, made.config.replace(b"hello", b"hullo"))
    assert "digest of the blob" in refusal(tmp_path, stub.address).message


def test_what_says_itself_that_it_is_too_large_is_not_begun(tmp_path: Path, stub: StubRegistry) -> None:
    stub.hold(image(), "1")
    error = refusal(tmp_path, stub.address, max_bytes=100)
    assert error.code == "file_too_large"
    assert sum("blobs" in path for path, _ in stub.asked) == 1
    with pytest.raises(ProgramError, match=r"50 GiB compressed; 40 GiB are allowed"):
        Bounds(40 << 30).announce(50 << 30)


def test_an_image_of_another_kind_is_refused_before_its_layers(tmp_path: Path, stub: StubRegistry) -> None:
    stub.hold(image(architecture="arm64"), "1")
    assert refusal(tmp_path, stub.address).code == "wrong_architecture"
    assert sum("blobs" in path for path, _ in stub.asked) == 1
    stub.answers["manifests/1"] = (MANIFEST_TYPE, b'{"schemaVersion": 1}')
    assert "old or unknown kind" in refusal(tmp_path, stub.address).message


def test_a_redirect_is_followed_without_the_login_and_checked_as_well(tmp_path: Path, stub: StubRegistry) -> None:
    blobs = stub.hold(made := image(), "1")
    with stub_registry() as storage:
        storage.answers[f"blobs/{sha256(blobs[0])}"] = stub.answers.pop(f"blobs/{sha256(blobs[0])}")
        path = f"blobs/{sha256(blobs[0])}"
        stub.redirects[path] = f"{storage.address}/v2/team/app/{path}"
        stub.token = "t0ken"
        error = refusal(tmp_path, stub.address)
        assert (error.code, storage.host in error.message) == ("address_not_allowed", True)
        assert storage.asked == []
        assert pull(tmp_path, stub.address, allowed=[stub.address, storage.address])["image_id"] == made.id
        assert all("Authorization" not in headers for _, headers in storage.asked)


def test_redirects_in_a_circle_end(stub: StubRegistry) -> None:
    stub.redirects["manifests/1"] = f"{stub.address}/v2/team/app/manifests/1"
    with pytest.raises(ProgramError, match="redirects more than 5 times"):
        Outbound([stub.address]).get(f"{stub.address}/v2/team/app/manifests/1")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/", "https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data", "https://[::ffff:10.0.0.1]/", "https://[64:ff9b::a00:1]/",
        "https://0.0.0.0/", "https://2130706433/", "https://0x7f.1/", "http://8.8.8.8/", "ftp://8.8.8.8/", "https://",
        "https://user@8.8.8.8/", "https://8.8.8.8:99999/", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_no_request_leaves_for_an_address_that_is_not_public(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "_pool", lambda *_: pytest.fail("a connection was made"))
    with pytest.raises(ProgramError) as refused:
        Outbound().get(url)
    assert refused.value.code == "address_not_allowed"


def test_only_the_named_port_is_allowed(stub: StubRegistry) -> None:
    with pytest.raises(ProgramError, match="not allowed"):
        Outbound(["http://127.0.0.1:1", f"https://{stub.host}"]).get(stub.address)
    assert Outbound([stub.address]).get(stub.address).status == 404


def test_the_checked_address_is_the_one_that_is_used(stub: StubRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers with another address the second time gets no second question."""
    asked = []

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host[0].isdigit():
            return [(2, 1, 6, "", (host, port))]
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "10.0.0.1", port))]

    monkeypatch.setattr(outbound.socket, "getaddrinfo", resolve)
    port = stub.host.rpartition(":")[2]
    answer = Outbound([f"http://registry.test:{port}"]).get(f"http://registry.test:{port}/")
    assert answer.status == 404
    assert stub.asked[0][1]["Host"] == f"registry.test:{port}"
    assert asked == ["registry.test"]


def test_tls_proves_the_name_though_the_connection_goes_to_the_checked_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry.test",
         "-addext", "subjectAltName=DNS:registry.test", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with stub_registry(served) as closed:
        port = closed.host.rpartition(":")[2]
        monkeypatch.setattr(outbound.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.0.1", int(port)))])
        allowed = Outbound([f"registry.test:{port}", f"other.test:{port}"])
        with pytest.raises(ProgramError, match="certificate"):
            allowed.get(f"https://registry.test:{port}/")
        monkeypatch.setattr(outbound.ssl, "create_default_context", lambda: trusting)
        assert allowed.get(f"https://registry.test:{port}/").status == 404
        with pytest.raises(ProgramError, match=r"other\.test"):
            allowed.get(f"https://other.test:{port}/")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("100.64.0.1", False), ("224.0.0.1", False),
        ("fe80::1%lo", False), ("fc00::1", False), ("::ffff:10.0.0.1", False), ("2002:7f00:1::", False),
        ("64:ff9b::808:808", True),
    ],
)  # fmt: skip
def test_public_addresses_are_told_from_others(address: str, expected: bool) -> None:
    assert is_public(address) is expected
