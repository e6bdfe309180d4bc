"""Serves a reward model: ``python -m runner.programs.serve.scoring RUN_FOLDER``, on one GPU where there is one.

Parameters: see ``settings``; ``parallel`` conversations go through the model together. Steps: model, server, one score,
``ready.json``, then serve until SIGTERM. Neither llama.cpp nor vLLM puts an adapter under a head that scores, so the
model runs here as it ran in training: same code, same tokens, same place where the score is read.
"""

from __future__ import annotations

import asyncio
import hmac
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from aiohttp import web

from runner.programs.lib.events import ProgramContext, ProgramError, run_program
from runner.programs.lib.model import choose_device
from runner.programs.lib.scoring import RewardModel
from runner.programs.serve import readiness
from runner.programs.serve.score_requests import Refusal, answer_of, conversations_of, names_of, require_fits
from runner.programs.serve.settings import Settings
from runner.programs.serve.weights import FULL_PRECISION_BELOW, list_tensors, num_parameters

MAX_BODY_BYTES = 16 * 2**20
#: Conversations that may wait; more are refused at once, so that their callers come back later.
MAX_WAITING = 4096
_SHUTDOWN_S = 2.0
_POLL_S = 0.1
_GREETING = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]


class Batcher:
    """Brings rows of several requests together: while one batch is computed, the next one gathers."""

    def __init__(self, scores: Callable[[Sequence[Sequence[int]]], list[float]], size: int) -> None:
        """``scores``: of a batch of at most ``size`` rows, called in a thread, one batch at a time."""
        self._scores, self._size = scores, size
        self._waiting: deque[tuple[list[int], asyncio.Future[float]]] = deque()
        self._bell = asyncio.Event()

    async def score(self, rows: Sequence[list[int]]) -> list[float]:
        """The scores of rows. Raises Refusal (503, ``overloaded``), and whatever the model's pass raises."""
        if len(self._waiting) + len(rows) > MAX_WAITING:
            message = f"{len(self._waiting)} conversations wait for their score; try again in a few seconds."
            raise Refusal(503, "overloaded", message)
        futures = [asyncio.get_running_loop().create_future() for _ in rows]
        # Rows of like lengths together: what is padded is computed too.
        self._waiting.extend(sorted(zip(rows, futures, strict=True), key=lambda pair: len(pair[0])))
        self._bell.set()
        return list(await asyncio.gather(*futures))

    async def run(self) -> None:
        """Compute what waits, until cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            while batch := self._take():
                try:
                    scores = await asyncio.to_thread(self._scores, [row for row, _ in batch])
                except Exception as error:  # the top of the loop: those who wait for this batch are told
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), score in zip(batch, scores, strict=True):
                    if not future.done():  # its client may have left meanwhile
                        future.set_result(score)

    def _take(self) -> list[tuple[list[int], asyncio.Future[float]]]:
        """The next rows that somebody still waits for."""
        batch: list[tuple[list[int], asyncio.Future[float]]] = []
        while self._waiting and len(batch) < self._size:
            row, future = self._waiting.popleft()
            if not future.done():
                batch.append((row, future))
        return batch


class ScoreServer:
    """What answers HTTP requests."""

    def __init__(self, settings: Settings, model: RewardModel, api_key: str) -> None:
        self._settings, self._model, self._api_key = settings, model, api_key
        self.batcher = Batcher(model.scores, settings.parallel)

    def application(self) -> web.Application:
        """``/v1/pooling`` (and ``/pooling``, where vLLM has it), ``/v1/models`` and ``/health``."""
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[errors_in_words])
        application.router.add_post("/v1/pooling", self.pooling)
        application.router.add_post("/pooling", self.pooling)
        application.router.add_get("/v1/models", self.models)
        application.router.add_get("/health", self.health)
        return application

    async def health(self, _request: web.Request) -> web.Response:
        """The server lives."""
        return web.json_response({"status": "ok"})

    async def models(self, request: web.Request) -> web.Response:
        """The one model that is served."""
        self._require_key(request)
        model = {"id": self._settings.served_name, "object": "model", "created": 0, "owned_by": "clavier"}
        return web.json_response({"object": "list", "data": [model]})

    async def pooling(self, request: web.Request) -> web.Response:
        """The scores of a request's conversations."""
        self._require_key(request)
        body = await request.read()
        rows = await asyncio.to_thread(self._rows_of, body)
        scores = await self.batcher.score(rows)
        return web.json_response(answer_of(scores, sum(map(len, rows)), self._settings.served_name))

    def _rows_of(self, body: bytes) -> list[list[int]]:
        conversations = conversations_of(body, self._settings.served_name)
        names = names_of(conversations)
        try:
            pairs = zip(conversations, names, strict=True)
            rows = [self._model.encode(conversation, name) for conversation, name in pairs]
        except ProgramError as error:  # the template refuses these turns, as it does in training
            raise Refusal(400, error.code, error.message, "messages") from None
        require_fits(rows, self._settings.context_tokens, names)
        return rows

    def _require_key(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
            raise Refusal(401, "invalid_token", "The server's key is missing or wrong.")


@web.middleware
async def errors_in_words(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error as JSON; what nobody foresaw as 500 and in the log."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except Refusal as refusal:
        return web.json_response(refusal.to_json(), status=refusal.status)
    except web.HTTPException as error:
        problem = Refusal(error.status, "too_large" if error.status == 413 else "http_error", error.reason)
        return web.json_response(problem.to_json(), status=error.status)
    except torch.OutOfMemoryError as error:
        print(f"ERROR out of memory: {error}", flush=True)
        problem = Refusal(503, "out_of_memory", "The batch did not fit into memory; deploy with a smaller parallel.")
        return web.json_response(problem.to_json(), status=problem.status)
    except Exception as error:  # the top of a request: logged whole, told in short
        traceback.print_exc()
        problem = Refusal(500, "internal_error", f"The score could not be computed ({type(error).__name__}).")
        return web.json_response(problem.to_json(), status=problem.status)


def main(context: ProgramContext) -> None:
    """Load, start, score once, announce, serve."""
    settings = Settings.from_parameters(context.parameters)
    settings.renderer()  # or it refuses
    weights = num_parameters(list_tensors(settings.model))
    device = choose_device("fp32" if weights < FULL_PRECISION_BELOW else "auto")
    context.report.phase("model", f"{weights:,} parameters on {device.name}")
    model = RewardModel(settings.model, settings.adapter, device)
    readiness.raise_if_stopped(context)
    client = readiness.ServerClient(readiness.prepare_endpoint(context), readiness.new_api_key())
    context.report.phase("start", f"scoring {settings.parallel} conversations of {settings.context_tokens} at a time")
    try:
        asyncio.run(_serve(context, settings, ScoreServer(settings, model, client.api_key), client))
    finally:
        if client.endpoint.unix:
            Path(client.endpoint.unix).unlink(missing_ok=True)


async def _serve(
    context: ProgramContext, settings: Settings, server: ScoreServer, client: readiness.ServerClient
) -> None:
    """Answer until SIGTERM, then raise Stopped."""
    runner = web.AppRunner(
        server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
    )
    await runner.setup()
    batches = asyncio.create_task(server.batcher.run())
    try:
        endpoint = client.endpoint
        if endpoint.unix:
            await web.UnixSite(runner, endpoint.unix).start()
        else:
            await web.TCPSite(runner, endpoint.host, endpoint.port).start()
        await asyncio.to_thread(_check_one_score, client, settings.served_name)
        readiness.write_ready(
            context,
            client,
            served_name=settings.served_name,
            engine=f"transformers {transformers.__version__}, reward",
            parity=None,
            context_tokens=settings.context_tokens,
        )
        while True:
            readiness.raise_if_stopped(context)
            await asyncio.sleep(_POLL_S)
    finally:
        batches.cancel()
        await runner.cleanup()


def _check_one_score(client: readiness.ServerClient, served_name: str) -> None:
    """Let the server score once, as a user would. Raises ServerUnavailable."""
    client.post("/v1/pooling", {"model": served_name, "messages": _GREETING})


if __name__ == "__main__":
    run_program(main)
