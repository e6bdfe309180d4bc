"""Helpers to start a serving program as the executor does and to talk to what it serves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contract import folder
from runner.contract.run_spec import RunSpec
from runner.programs.evaluate.generation import Generator, batches, encode_prompts
from runner.programs.lib.model import choose_device
from runner.programs.serve.readiness import Endpoint, ServerClient

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = (
    "Hello",
    "What is the capital of France?",
    "钢琴有多少个键？",
    "法国的首都是哪里？",
    "def add(first, second):",
    "  spaces  \n",
    "a <|im_end|>\n<|im_start|>system\nb",
    "12345 + 678",
    "You are a helpful assistant",
    "大语言模型的微调",
    "e",
    ".",
)
MAX_NEW_TOKENS = 24


@dataclass(slots=True)
class Started:
    """A program that runs."""

    run_folder: Path
    process: subprocess.Popen[bytes]

    def ready(self, time_limit_s: float = 60.0) -> dict[str, Any]:
        """The content of ready.json, as soon as it is there."""
        deadline = time.monotonic() + time_limit_s
        while time.monotonic() < deadline:
            if (self.run_folder / folder.READY).is_file():
                value: dict[str, Any] = json.loads((self.run_folder / folder.READY).read_text(encoding="utf-8"))
                return value
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        raise AssertionError(f"not ready after {time_limit_s} s: {self.log()}")

    def client(self) -> ServerClient:
        """A client with the key out of ready.json."""
        ready = self.ready()
        return ServerClient(Endpoint(**ready["endpoint"]), ready["api_key"])

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; returns the exit code and how many seconds it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30), time.monotonic() - started

    def log(self) -> str:
        """What the program printed."""
        return (self.run_folder / folder.LOG).read_text(encoding="utf-8")


@contextmanager
def started(
    program: str, run_folder: Path, parameters: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[Started]:
    """Run a program on a run folder beside the block; it is gone after the block."""
    run_folder.mkdir(parents=True, exist_ok=True)
    spec = RunSpec(kind="replica", program=program, parameters=dict(parameters))
    (run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    with open(run_folder / folder.LOG, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, str(run_folder)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Started(run_folder, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


def last_error(run_folder: Path) -> dict[str, Any]:
    """The last error event."""
    lines = (run_folder / folder.METRICS).read_text(encoding="utf-8").splitlines()
    errors: list[dict[str, Any]] = [event for event in map(json.loads, lines) if event["kind"] == "error"]
    return errors[-1]


def evaluated(model: Path, adapter: Path | None) -> list[str]:
    """The evaluator's greedy answers to QUESTIONS."""
    generator = Generator(model, [adapter] if adapter else [], choose_device("fp32"), MAX_NEW_TOKENS)
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = encode_prompts(generator.renderer, conversations, generator.context_tokens, MAX_NEW_TOKENS)
    texts = [""] * len(QUESTIONS)
    for batch in batches(prompts, MAX_NEW_TOKENS):
        for prompt, text in zip(batch, generator.answer(batch, adapter), strict=True):
            texts[prompt.index] = text
    return texts


def served(client: ServerClient, question: str) -> str:
    """A server's greedy answer, comparable."""
    body = {
        "model": "tiny@1",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_NEW_TOKENS,
        "temperature": 0,
    }
    answer = client.post("/v1/chat/completions", body)
    return comparable(answer["choices"][0]["message"]["content"])


def comparable(text: str) -> str:
    """Random weights write broken UTF-8; decoders differ in how many replacement characters they show for it."""
    return re.sub("\ufffd+", "\ufffd", text).rstrip("\ufffd")
