"""Serves a model on CPUs with llama.cpp inside this process: ``python -m runner.programs.serve.cpu RUN_FOLDER``.

Parameters: see ``settings``. Steps: private tokenizer, GGUF, server, token parity, one answer,
``ready.json``, then serve until SIGTERM.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.programs.lib.events import ProgramContext, ProgramError, run_program
from runner.programs.lib.marks import Message
from runner.programs.serve import readiness
from runner.programs.serve.gguf_writer import write_adapter_gguf, write_model_gguf
from runner.programs.serve.private_tokens import write_private_tokenizer
from runner.programs.serve.settings import Settings

#: A second thread on busy cores makes llama.cpp spin instead of compute: 1.3 tokens/s against 35.
NUM_THREADS = 1
#: Prompt prefixes that llama.cpp keeps for the next request; its own default of 8 GiB is more than a small node has.
PREFIX_CACHE_MIB = 256
HEALTH_TIME_LIMIT_S = 120.0
_WARNINGS_AND_ERRORS = 2


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """What llama.cpp loads. ``is_exact``: everything is computed in float32, as the evaluator does."""

    model: Path
    adapter: Path | None
    is_exact: bool


def main(context: ProgramContext) -> None:
    """Convert, start, compare, announce, serve."""
    # OpenMP spins on busy cores; read once, when the conversion imports torch.
    os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))
    settings = Settings.from_parameters(context.parameters)
    renderer = settings.renderer()
    files = _convert(context, settings)
    readiness.raise_if_stopped(context)

    client = readiness.ServerClient(readiness.prepare_endpoint(context), readiness.new_api_key())
    context.report.phase(
        "start", f"starting llama.cpp with {settings.parallel} slots of {settings.context_tokens} tokens"
    )
    # The name keeps the server alive: it ends when its last reference goes.
    server = start_server(settings, client, files)
    try:
        readiness.wait_until_healthy(context, client, HEALTH_TIME_LIMIT_S, _runs_in_this_process)
        parity = readiness.check_parity(lambda messages: _prompt_token_ids(client, messages), renderer)
        readiness.check_one_answer(client, settings.served_name)
        readiness.write_ready(
            context,
            client,
            served_name=settings.served_name,
            engine=_engine(),
            parity=parity,
            context_tokens=settings.context_tokens,
        )
        readiness.serve_until_stopped(context, _runs_in_this_process)
    finally:
        del server
        if client.endpoint.unix:
            Path(client.endpoint.unix).unlink(missing_ok=True)


def _convert(context: ProgramContext, settings: Settings) -> GgufFiles:
    """Model and adapter for llama.cpp, written anew at every start because their token names are secret."""
    context.report.phase("convert", "writing the model for llama.cpp")
    private = context.work / "tokenizer"
    shutil.rmtree(private, ignore_errors=True)
    write_private_tokenizer(settings.model, private)
    model_path = context.work / "model.gguf"

    def report_tensor(done: int, total: int) -> None:
        readiness.raise_if_stopped(context)
        context.report.progress(done, total)

    facts = write_model_gguf(settings.model, model_path, tokenizer_folder=private, on_tensor=report_tensor)
    context.report.phase(
        "model", f"{facts.num_parameters:,} parameters in {facts.precision}, {facts.size_bytes / 2**20:.1f} MiB"
    )
    adapter_path = None
    if settings.adapter is not None:
        adapter_path = context.work / "adapter.gguf"
        write_adapter_gguf(settings.adapter, settings.model, adapter_path)
    return GgufFiles(model_path, adapter_path, is_exact=facts.precision == "f32")


def start_server(settings: Settings, client: readiness.ServerClient, files: GgufFiles) -> object:
    """llama.cpp in this process, until the last reference to what is returned goes. Raises ProgramError."""
    # Heavy: 100 MB of native code.
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(files.model)
    params.model_alias = {settings.served_name}
    params.hostnames = [client.endpoint.unix or client.endpoint.host]
    params.port = client.endpoint.port or 0
    params.api_keys = [client.api_key]
    params.n_ctx = settings.context_tokens * settings.parallel
    params.n_parallel = settings.parallel
    params.cpuparams.n_threads = NUM_THREADS
    params.cpuparams_batch.n_threads = NUM_THREADS
    params.cache_ram_mib = PREFIX_CACHE_MIB
    params.n_gpu_layers = 0
    if files.is_exact:
        # By default keys, values and flash attention are rounded to 16 bits, and greedy text drifts from training's.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja = True
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = _WARNINGS_AND_ERRORS
    if files.adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(files.adapter), 1.0)]
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise ProgramError("server_failed", f"llama.cpp can not load this model: {error}", field="model") from error


def _prompt_token_ids(client: readiness.ServerClient, messages: Sequence[Message]) -> list[int]:
    """What a chat request becomes inside the server."""
    prompt = client.post("/apply-template", {"messages": [dict(message) for message in messages]})["prompt"]
    body = {"content": prompt, "add_special": True, "parse_special": True}
    return [int(token_id) for token_id in client.post("/tokenize", body)["tokens"]]


def _runs_in_this_process() -> None:
    """The server is a part of this process: while this runs, it is alive."""


def _engine() -> str:
    import xllamacpp

    return f"llama.cpp (xllamacpp {xllamacpp.__version__})"


if __name__ == "__main__":
    run_program(main)
