"""Serves a model with vLLM as a child process: ``python -m runner.programs.serve.vllm RUN_FOLDER``.

Parameters: see ``settings``. The interpreter that runs this program must have vLLM (the GPU image, or vLLM's CPU
build). Steps: private tokenizer, vLLM, token parity, one answer, ``ready.json``, then serve until SIGTERM.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from runner.contract.run_spec import RunSpec
from runner.programs.lib.events import ProgramContext, ProgramError, run_program
from runner.programs.lib.marks import Message
from runner.programs.serve import readiness
from runner.programs.serve.private_tokens import write_private_tokenizer
from runner.programs.serve.settings import Settings
from runner.programs.serve.weights import FULL_PRECISION_BELOW, list_tensors, num_parameters

#: Loading a large model from a network disk and compiling its kernels take this long at worst.
HEALTH_TIME_LIMIT_S = 1800.0
#: Between TERM and KILL; the program itself must be gone 5 s after it was asked.
STOP_GRACE_S = 4.0
#: The ranks that vLLM has kernels for.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class LaunchFacts:
    """What a command line needs beside the settings.

    ``dtype``: vLLM's name, ``auto`` for the type of the weights on disk; ``lora_rank``: None without an adapter.
    """

    endpoint: readiness.Endpoint
    tokenizer: Path
    dtype: str
    num_gpus: int
    lora_rank: int | None


def vllm_command(settings: Settings, facts: LaunchFacts) -> list[str]:
    """The command line of vLLM's OpenAI server; its API key goes through the environment, which others can not list.

    Raises ProgramError where the adapter's rank is larger than vLLM computes.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(settings.model), "--tokenizer", str(facts.tokenizer)]
    # Sampling defaults of the model's own file (a repetition penalty, say) are not what was evaluated.
    command += ["--dtype", facts.dtype, "--generation-config", "vllm"]
    command += ["--served-model-name", settings.served_name if settings.adapter is None else base_name(settings)]
    command += ["--max-model-len", str(settings.context_tokens), "--max-num-seqs", str(settings.parallel)]
    command += ["--tensor-parallel-size", str(max(1, facts.num_gpus))]
    if facts.endpoint.unix:
        command += ["--uds", facts.endpoint.unix]
    else:
        command += ["--host", str(facts.endpoint.host), "--port", str(facts.endpoint.port)]
    if settings.adapter is not None and facts.lora_rank is not None:
        command += ["--enable-lora", "--max-lora-rank", str(_lora_rank_bucket(facts.lora_rank))]
        command += ["--lora-modules", f"{settings.served_name}={settings.adapter}"]
    return command


def base_name(settings: Settings) -> str:
    """The name under which vLLM offers the model without its adapter; the gateway never asks for it."""
    return f"{settings.served_name}:base"


def vllm_environment(spec: RunSpec, api_key: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: ours, the spec's, the key, and no calls home."""
    quiet = {"VLLM_API_KEY": api_key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**environment, **spec.environment, **quiet}


def main(context: ProgramContext) -> None:
    """Start vLLM, compare, announce, serve."""
    settings = Settings.from_parameters(context.parameters)
    renderer = settings.renderer()
    tokenizer = context.work / "tokenizer"
    shutil.rmtree(tokenizer, ignore_errors=True)
    write_private_tokenizer(settings.model, tokenizer)
    client = readiness.ServerClient(readiness.prepare_endpoint(context), readiness.new_api_key())
    facts = LaunchFacts(
        endpoint=client.endpoint,
        tokenizer=tokenizer,
        dtype="float32" if num_parameters(list_tensors(settings.model)) < FULL_PRECISION_BELOW else "auto",
        num_gpus=context.spec.resources.gpus,
        lora_rank=_lora_rank(settings.adapter),
    )
    command = vllm_command(settings, facts)
    context.report.phase("start", "starting " + " ".join(command[1:]))
    with _child(command, vllm_environment(context.spec, client.api_key, os.environ)) as still_alive:
        readiness.wait_until_healthy(context, client, HEALTH_TIME_LIMIT_S, still_alive)
        parity = readiness.check_parity(lambda messages: _prompt_token_ids(client, settings, messages), renderer)
        readiness.check_one_answer(client, settings.served_name)
        readiness.write_ready(
            context,
            client,
            served_name=settings.served_name,
            engine=f"vLLM {client.get('/version')['version']}",
            parity=parity,
            context_tokens=settings.context_tokens,
        )
        readiness.serve_until_stopped(context, still_alive)


@contextmanager
def _child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """Run the server beside the block; yields a function that raises ProgramError once the server has ended."""
    # A process group of its own: vLLM's engine and workers are processes too, and outlive a killed API server.
    process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL, process_group=0)

    def still_alive() -> None:
        code = process.poll()
        if code is not None:
            message = f"vLLM ended with exit code {code}. Its own messages are above in the log."
            raise ProgramError("server_ended", message, exit_code=1)

    try:
        yield still_alive
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE_S)
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _prompt_token_ids(client: readiness.ServerClient, settings: Settings, messages: Sequence[Message]) -> list[int]:
    body = {
        "model": settings.served_name,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": True,
        "add_special_tokens": False,
    }
    return [int(token_id) for token_id in client.post("/tokenize", body)["tokens"]]


def _lora_rank(adapter: Path | None) -> int | None:
    """The largest rank in an adapter."""
    if adapter is None:
        return None
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def _lora_rank_bucket(rank: int) -> int:
    for bucket in LORA_RANKS:
        if rank <= bucket:
            return bucket
    raise ProgramError(
        "unsupported_adapter",
        f"The adapter has rank {rank}; vLLM serves up to {LORA_RANKS[-1]}. Merge it into its base model first.",
        field="adapter",
    )


if __name__ == "__main__":
    run_program(main)
