"""Taking models over: from folders, from hubs (a small hub of our own on loopback), and everything that is refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.contract import exits, folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib.artifacts import is_whole, model_facts
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.render import DEFAULT_TEMPLATE, Renderer
from runner.programs.models import import_model
from tests.programs.recipes import events_of, make_context
from tests.programs.servers import REPOSITORY, last_error
from tests.programs.tiny_models import write_tiny_model

COMMIT = "a" * 40


@pytest.fixture
def source(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "source"))


def parameters_of(location: Path | str, **others: Any) -> dict[str, Any]:
    values = {"source": "path", "location": str(location), "revision": None, "in_place": False, "endpoint": None}
    return {**values, **others}


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def manifest_of(run_folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run_folder / "output" / "MANIFEST.json").read_text(encoding="utf-8"))
    return value


def test_a_folder_is_copied_with_progress_in_bytes_and_described(source: Path, tmp_path: Path) -> None:
    (source / "notes.docx").write_text("stays behind")
    import_model.main(make_context(tmp_path / "run", parameters_of(source)))
    model = tmp_path / "run" / "output" / "model"
    assert (model / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not (model / "notes.docx").exists()
    manifest = manifest_of(tmp_path / "run")
    assert manifest["kind"] == "model"
    assert manifest["facts"].items() >= model_facts(model).items()
    assert manifest["facts"]["chat_template"] == "model"
    assert is_whole(tmp_path / "run" / "output")
    last = events_of(tmp_path / "run", "progress")[-1]
    assert last["step"] == last["total_steps"] == sum(path.stat().st_size for path in model.iterdir())


def test_in_place_checks_and_copies_nothing(source: Path, tmp_path: Path) -> None:
    import_model.main(make_context(tmp_path / "run", parameters_of(source, in_place=True)))
    assert not (tmp_path / "run" / "output" / "model").exists()
    facts = manifest_of(tmp_path / "run")["facts"]
    assert (facts["in_place"], facts["location"]) == (True, str(source))
    assert facts["fingerprint"] == model_facts(source)["fingerprint"]


def test_a_base_without_template_gets_the_default(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "qwen2", template=None)
    import_model.main(make_context(tmp_path / "run", parameters_of(source)))
    config = json.loads((tmp_path / "run" / "output" / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == DEFAULT_TEMPLATE
    assert config["eos_token"] == "<|im_end|>"
    assert manifest_of(tmp_path / "run")["facts"]["chat_template"] == "default_written"
    assert "chat_template" not in json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_in_place_says_that_the_default_template_is_not_written(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "qwen2", template=None)
    import_model.main(make_context(tmp_path / "run", parameters_of(source, in_place=True)))
    assert manifest_of(tmp_path / "run")["facts"]["chat_template"] == "default_not_written"
    assert "chat_template" not in json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))


def without(name: str) -> Callable[[Path], None]:
    return lambda source: (source / name).unlink()


def only_a_pickle(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def cut_weights(source: Path) -> None:
    with open(source / "model.safetensors", "r+b") as stream:
        stream.truncate((source / "model.safetensors").stat().st_size - 8)


def link_outside(source: Path) -> None:
    (source / "README.md").symlink_to("/etc/hostname")


def index_of_a_missing_shard(source: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_a_missing_tensor(source: Path) -> None:
    index = {"weight_map": {"absent.weight": "model.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter_only(source: Path) -> None:
    (source / "config.json").rename(source / "adapter_config.json")


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (without("config.json"), "missing_file", "holds no config.json"),
        (adapter_only, "config_invalid", "needs peft_type LORA and a rank"),
        (lambda source: (source / "config.json").write_text("{"), "config_invalid", "not JSON"),
        (lambda source: (source / "config.json").write_text("[]"), "config_invalid", "must be a JSON object"),
        (lambda source: change_json(source / "config.json", architectures=[]), "config_invalid", "no architecture"),
        (
            lambda source: change_json(source / "config.json", max_position_embeddings=float("inf")),
            "out_of_range",
            "max_position_embeddings inf is no whole number from 1 to 1,073,741,824",
        ),
        (lambda source: change_json(source / "config.json", d_model=2**20), "out_of_range", "d_model 1048576"),
        (without("model.safetensors"), "missing_file", "no weights"),
        (only_a_pickle, "pickle_not_allowed", r"only pickles \(pytorch_model.bin\).*save_pretrained"),
        (cut_weights, "corrupt_file", "damaged or cut off"),
        (lambda source: (source / "model.safetensors").write_bytes(b"x"), "corrupt_file", r"\(1 bytes\)"),
        (index_of_a_missing_shard, "missing_file", "names model-00002-of-00002.safetensors"),
        (index_of_a_missing_tensor, "missing_file", "holds absent.weight, but it does not"),
        (
            lambda source: change_json(source / "config.json", auto_map={"A": "b.C"}),
            "remote_code_not_allowed",
            "auto_map",
        ),
        (
            lambda source: change_json(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}),
            "remote_code_not_allowed",
            "tokenizer_config.json asks for auto_map",
        ),
        (
            lambda source: change_json(source / "config.json", vision_config={"trust_remote_code": True}),
            "remote_code_not_allowed",
            "trust_remote_code",
        ),
        (without("tokenizer.json"), "missing_file", "tokenizer.json"),
        (lambda source: (source / "tokenizer.json").write_text("{}"), "tokenizer_invalid", "can not be read"),
        (link_outside, "link_refused", "README.md is a link to a place outside"),
    ],
)
def test_what_is_no_harmless_model_is_refused(
    damage: Callable[[Path], Any], code: str, message: str, source: Path, tmp_path: Path
) -> None:
    damage(source)
    with pytest.raises(ProgramError, match=message) as refusal:
        import_model.main(make_context(tmp_path / "run", parameters_of(source)))
    assert (refusal.value.code, refusal.value.field) == (code, "location")
    assert not (tmp_path / "run" / "output" / "MANIFEST.json").exists()


def test_a_pickle_beside_safetensors_is_left_behind_and_named(source: Path, tmp_path: Path) -> None:
    (source / "training_args.bin").write_bytes(b"pickle")
    import_model.main(make_context(tmp_path / "run", parameters_of(source)))
    assert not (tmp_path / "run" / "output" / "model" / "training_args.bin").exists()
    assert "training_args.bin" in events_of(tmp_path / "run", "warning")[0]["message"]


def test_a_pickle_in_a_folder_used_in_place_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "training_args.bin").write_bytes(b"pickle")
    with pytest.raises(ProgramError, match=r"training_args\.bin: pickles run code"):
        import_model.main(make_context(tmp_path / "run", parameters_of(source, in_place=True)))


def test_a_link_inside_the_folder_is_followed(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(source / "blob")
    (source / "model.safetensors").symlink_to("blob")
    import_model.main(make_context(tmp_path / "run", parameters_of(source)))
    copied = tmp_path / "run" / "output" / "model" / "model.safetensors"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (source / "blob").read_bytes()


def test_a_stop_ends_the_copy(source: Path, tmp_path: Path) -> None:
    context = make_context(tmp_path / "run", parameters_of(source))
    context.should_stop = True
    with pytest.raises(Stopped):
        import_model.main(context)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"source": "ftp"}, "source"),
        ({"source": "huggingface", "in_place": True}, "in_place"),
        ({"location": None}, "location"),
    ],
)
def test_a_wrong_parameter_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ProgramError) as refusal:
        import_model.Request.from_parameters({**parameters_of("/models/a"), **change})
    assert refusal.value.field == field


class Hub(http.server.ThreadingHTTPServer):
    """Enough of the HTTP interfaces of Hugging Face and ModelScope to download the repository ``org/tiny``."""

    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.tokens: set[str | None] = set()
        self.downloaded: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are not what a test's output is about."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        url = urllib.parse.urlparse(self.path)
        path, query = url.path, urllib.parse.parse_qs(url.query)
        self.server.tokens.add(self.headers["Authorization"])
        if path == "/api/models/org/tiny/revision/main" or path == f"/api/models/org/tiny/revision/{COMMIT}":
            self._json({"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": p.name} for p in self._files()]})
        elif path.startswith("/api/models/org/tiny/tree/"):
            entries = [
                {"type": "file", "oid": sha1(p), "size": p.stat().st_size, "path": p.name} for p in self._files()
            ]
            self._json(entries)
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self._file(path.rpartition("/")[2])
        elif path == "/api/v1/models/org/tiny/repo/files":
            entries = [
                {"Path": p.name, "Name": p.name, "Type": "blob", "Size": p.stat().st_size, "Sha256": sha256(p)}
                for p in self._files()
            ]
            self._json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        elif path == "/api/v1/models/org/tiny/repo":
            self._file(query["FilePath"][0])
        else:
            missing = "RevisionNotFound" if path.startswith("/api/models/org/tiny/") else "RepoNotFound"
            self._send(b"{}", {"X-Error-Code": missing}, code=404)

    def _files(self) -> list[Path]:
        return sorted(self.server.files.iterdir())

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        path = self.server.files / name
        if self.command == "GET":
            self.server.downloaded.add(name)
        self._send(path.read_bytes(), {"ETag": f'"{sha1(path)}"', "X-Repo-Commit": COMMIT})

    def _send(self, body: bytes, headers: dict[str, str], code: int = 200) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:
    """A hub that offers the tiny model, on a loopback port."""
    with Hub(source) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_import(run_folder: Path, parameters: dict[str, Any], environment: dict[str, str]) -> int:
    """Run the program as the executor does (the hub libraries read their environment when they are imported)."""
    run_folder.mkdir()
    spec = RunSpec("model_import", "runner.programs.models.import_model", parameters, needs_network=True)
    (run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    command = [sys.executable, "-m", "runner.programs.models.import_model", str(run_folder)]
    home = {"HF_HOME": str(run_folder / "hf"), "MODELSCOPE_CACHE": str(run_folder / "ms"), "HOME": str(run_folder)}
    environment = {**os.environ, **home, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, timeout=100).returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "revision", "variable"),
    [("huggingface", COMMIT, "HF_ENDPOINT"), ("modelscope", "master", "MODELSCOPE_ENDPOINT")],
)
def test_a_hub_is_downloaded_from_the_address_in_the_environment(
    name: str, revision: str, variable: str, hub: Hub, source: Path, tmp_path: Path
) -> None:
    (source / "tf_model.h5").write_bytes(b"another format")
    parameters = parameters_of("org/tiny", source=name)
    assert run_import(tmp_path / "run", parameters, {variable: hub.address}) == exits.OK
    model = tmp_path / "run" / "output" / "model"
    assert sha256(model / "model.safetensors") == sha256(source / "model.safetensors")
    assert Renderer.from_folder(model).render_hash == Renderer.from_folder(source).render_hash
    assert "tf_model.h5" not in hub.downloaded
    assert manifest_of(tmp_path / "run")["facts"]["revision"] == revision


@pytest.mark.slow
def test_a_token_reaches_the_hub_and_nothing_that_is_written(hub: Hub, tmp_path: Path) -> None:
    parameters = parameters_of("org/tiny", source="huggingface", endpoint=hub.address)
    assert run_import(tmp_path / "run", parameters, {"HF_TOKEN": "hf_secret"}) == exits.OK
    assert hub.tokens == {"Bearer hf_secret"}
    written = [path for path in (tmp_path / "run" / "output").rglob("*") if path.is_file()]
    assert not [path for path in written if b"hf_secret" in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
def test_a_repository_of_pickles_is_refused_before_the_download(
    name: str, hub: Hub, source: Path, tmp_path: Path
) -> None:
    only_a_pickle(source)
    parameters = parameters_of("org/tiny", source=name, endpoint=hub.address)
    assert run_import(tmp_path / "run", parameters, {}) == exits.USER_ERROR
    assert "only pickles (pytorch_model.bin)" in last_error(tmp_path / "run")["message"]
    assert hub.downloaded == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
def test_a_repository_beyond_the_quota_is_refused_before_the_download(name: str, hub: Hub, tmp_path: Path) -> None:
    parameters = parameters_of("org/tiny", source=name, endpoint=hub.address) | {"max_bytes": 1000}
    assert run_import(tmp_path / "run", parameters, {}) == exits.USER_ERROR
    error = last_error(tmp_path / "run")
    assert (error["code"], error["field"]) == ("quota_exceeded", "location")
    assert "leaves 1,000" in error["message"]
    assert hub.downloaded == set()


@pytest.mark.slow
def test_a_revision_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    parameters = parameters_of("org/tiny", source="huggingface", revision="v9", endpoint=hub.address)
    assert run_import(tmp_path / "run", parameters, {}) == exits.USER_ERROR
    assert last_error(tmp_path / "run")["field"] == "revision"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
def test_an_unknown_repository_is_named(name: str, hub: Hub, tmp_path: Path) -> None:
    parameters = parameters_of("org/other", source=name, endpoint=hub.address)
    assert run_import(tmp_path / "run", parameters, {}) == exits.USER_ERROR
    error = last_error(tmp_path / "run")
    assert (error["code"], error["field"]) == ("model_not_found", "location")
    assert "org/other" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variable"), [("huggingface", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")])
def test_a_hub_that_can_not_be_reached_is_named_with_what_to_do(name: str, variable: str, tmp_path: Path) -> None:
    parameters = parameters_of("org/tiny", source=name)
    assert run_import(tmp_path / "run", parameters, {variable: "http://127.0.0.1:9"}) == exits.UNREACHABLE
    error = last_error(tmp_path / "run")
    assert error["code"] == "hub_unreachable"
    assert "http://127.0.0.1:9 can not be reached" in error["message"]
    assert variable in error["message"]
    assert "upload its folder" in error["message"]
