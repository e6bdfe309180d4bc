"""vLLM's command line, and the program around it with a small stand-in for vLLM (the real one needs a GPU).

The stand-in is a package named ``vllm`` on PYTHONPATH that answers the HTTP requests which the program makes. It reads
the tokenizer folder that the program wrote, so the token parity is computed, not assumed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.contract import exits, folder
from runner.contract.run_spec import Limits, RunSpec
from runner.programs.lib.events import ProgramError
from runner.programs.serve.readiness import Endpoint
from runner.programs.serve.settings import Settings
from runner.programs.serve.vllm import LaunchFacts, vllm_command, vllm_environment
from tests.programs.servers import Started, last_error, started

STAND_IN = """
import argparse, http.server, json, os, signal, socketserver, subprocess, sys
from runner.programs.lib.render import Renderer

parser = argparse.ArgumentParser()
for name in ("model", "tokenizer", "served-model-name", "uds", "host", "port", "max-model-len", "max-num-seqs",
             "tensor-parallel-size", "dtype", "generation-config", "max-lora-rank", "lora-modules"):
    parser.add_argument("--" + name)
parser.add_argument("--enable-lora", action="store_true")
options = parser.parse_args()
if os.environ.get("STAND_IN_FAILS"):
    sys.exit("CUDA is not available")
if os.environ.get("STAND_IN_IS_STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", options.uds])
renderer = Renderer.from_folder(options.tokenizer)
names = [options.served_model_name] + [pair.split("=")[0] for pair in (options.lora_modules or "").split() if pair]
health_checks = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self): return "local"
    def do_GET(self):
        global health_checks
        health_checks += self.path == "/health"
        if self.path == "/health" and health_checks < 3: return self.answer(503, None)
        if self.path == "/health": return self.answer(200, None)
        self.answer(200, {"version": "0.0-stand-in"})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]: return self.answer(401, {})
        if body["model"] not in names: return self.answer(404, {"error": "no model " + body["model"]})
        if self.path == "/tokenize":
            ids = renderer.encode_prompt(body["messages"]) + [5] * bool(os.environ.get("STAND_IN_ADDS_A_TOKEN"))
            return self.answer(200, {"tokens": ids, "count": len(ids)})
        self.answer(200, {"usage": {"completion_tokens": 4}, "choices": []})
    def answer(self, code, value):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

Server(options.uds, Handler).serve_forever()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """PYTHONPATH with the stand-in first."""
    package = tmp_path / "stand-in" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(STAND_IN, encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path / "stand-in")}


@pytest.fixture
def parameters(tiny_model_folder: Path, tiny_adapter_folder: Path) -> dict[str, Any]:
    return {
        "server": "vllm",
        "model": str(tiny_model_folder),
        "adapter": str(tiny_adapter_folder),
        "served_name": "tiny@2",
        "context_tokens": 128,
        "parallel": 4,
    }


@pytest.fixture
def serving(parameters: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> Iterator[Started]:
    with started("runner.programs.serve.replica", tmp_path / "run", parameters, environment) as program:
        program.ready()
        yield program


def facts(**changes: Any) -> LaunchFacts:
    values: dict[str, Any] = {
        "endpoint": Endpoint(unix="/run/7/server.sock"),
        "tokenizer": Path("/run/7/tokenizer"),
        "dtype": "auto",
        "num_gpus": 0,
        "lora_rank": None,
    }
    return LaunchFacts(**{**values, **changes})


def test_command_line_of_a_base_model_on_two_gpus() -> None:
    settings = Settings(Path("/models/base"), None, "qa@3", 4096, 16)
    assert vllm_command(settings, facts(num_gpus=2)) == [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "/models/base", "--tokenizer", "/run/7/tokenizer"),
        *("--dtype", "auto", "--generation-config", "vllm"),
        *("--served-model-name", "qa@3", "--max-model-len", "4096", "--max-num-seqs", "16"),
        *("--tensor-parallel-size", "2", "--uds", "/run/7/server.sock"),
    ]


def test_command_line_of_an_adapter_serves_it_under_the_asked_name() -> None:
    settings = Settings(Path("/models/base"), Path("/models/lora"), "qa@3", 4096, 16)
    command = vllm_command(settings, facts(lora_rank=12))
    assert command[command.index("--served-model-name") + 1] == "qa@3:base"
    assert command[-5:] == ["--enable-lora", "--max-lora-rank", "16", "--lora-modules", "qa@3=/models/lora"]


def test_command_line_with_a_port_where_no_socket_is_possible() -> None:
    command = vllm_command(
        Settings(Path("/m"), None, "qa", 64, 1), facts(endpoint=Endpoint(host="127.0.0.1", port=4100))
    )
    assert command[-4:] == ["--host", "127.0.0.1", "--port", "4100"]


def test_a_rank_that_vllm_has_no_kernel_for_is_refused() -> None:
    with pytest.raises(ProgramError, match="rank 1024; vLLM serves up to 512"):
        vllm_command(Settings(Path("/m"), Path("/a"), "qa", 64, 1), facts(lora_rank=1024))


def test_key_goes_through_the_environment_and_the_spec_can_not_change_it() -> None:
    spec = RunSpec("replica", None, {}, environment={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": "guess"})
    environment = vllm_environment(spec, "secret", {"PATH": "/bin"})
    assert environment["VLLM_API_KEY"] == "secret"
    assert (environment["PATH"], environment["VLLM_CPU_KVCACHE_SPACE"]) == ("/bin", "1")


@pytest.mark.slow
def test_program_waits_for_health_compares_tokens_and_announces(serving: Started) -> None:
    ready = serving.ready()
    assert ready["engine"] == "vLLM 0.0-stand-in"
    assert ready["parity"]["tokens"] > 500
    assert ready["endpoint"]["unix"].endswith("server.sock")
    assert ready["api_key"] not in serving.log()


@pytest.mark.slow
def test_sigterm_ends_program_and_child(serving: Started) -> None:
    code, seconds = serving.stop()
    assert code == 143
    assert seconds < 5
    assert children_of(serving.run_folder) == []


@pytest.mark.slow
def test_a_child_that_ignores_sigterm_is_killed_with_its_workers_before_the_platform_kills(
    parameters: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    stubborn = {**environment, "STAND_IN_IS_STUBBORN": "1"}
    with started("runner.programs.serve.vllm", tmp_path / "run", parameters, stubborn) as program:
        program.ready()
        code, seconds = program.stop()
    assert code == 143
    assert 3 < seconds < Limits().stop_grace_s
    assert children_of(tmp_path / "run") == []


@pytest.mark.slow
def test_a_server_that_adds_a_token_is_refused_and_ended(
    parameters: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    adding = {**environment, "STAND_IN_ADDS_A_TOKEN": "1"}
    with started("runner.programs.serve.vllm", tmp_path / "run", parameters, adding) as program:
        assert program.process.wait(60) == exits.RENDER_MISMATCH
    assert "in the server but nothing in training" in last_error(tmp_path / "run")["message"]
    assert not (tmp_path / "run" / folder.READY).exists()
    assert children_of(tmp_path / "run") == []


@pytest.mark.slow
def test_a_server_that_ends_while_loading_fails_the_program_at_once(
    parameters: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    failing = {**environment, "STAND_IN_FAILS": "1"}
    with started("runner.programs.serve.vllm", tmp_path / "run", parameters, failing) as program:
        assert program.process.wait(60) == 1
    assert last_error(tmp_path / "run")["code"] == "server_ended"


def children_of(run_folder: Path) -> list[str]:
    """Command lines of living processes that name the run folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended while we looked
            continue
        if str(run_folder) in line:
            lines.append(line)
    return lines
