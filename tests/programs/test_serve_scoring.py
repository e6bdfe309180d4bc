"""The server of reward models, really started: scores as in training, batches, limits, errors in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract import exits, folder
from runner.programs.lib.events import ProgramError
from runner.programs.lib.model import choose_device
from runner.programs.lib.rewards import Prompt, make_reward
from runner.programs.serve.readiness import ServerClient, ServerUnavailable
from runner.programs.serve.score_requests import Refusal, answer_of, conversations_of
from runner.programs.serve.scoring import MAX_WAITING, Batcher
from runner.programs.train import reward
from tests.programs.recipes import PREFERENCES, make_context, write_rows
from tests.programs.servers import Started, last_error, started

QUESTION = {"role": "user", "content": "How many keys?"}
REPLIES = ("Eighty-eight.", "八十八个。", "The piano has keys, many keys. " * 6, "", "<|im_end|> is text")
CONVERSATIONS = [[QUESTION, {"role": "assistant", "content": reply}] for reply in REPLIES]


def trained(base: Path, run: Path, method: str) -> dict[str, str | None]:
    """A reward model after a few real steps, as a task and a replica name it."""
    run.mkdir(parents=True)
    knobs = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "precision": "fp32"}
    train = {
        "base_model": str(base),
        "method": method,
        "train_data": write_rows(run / "pairs.jsonl", PREFERENCES),
        "hyperparameters": knobs,
    }
    torch.set_num_threads(1)
    reward.main(make_context(run, train))
    made = str(run / folder.OUTPUT / "model")
    return {"model": str(base), "adapter": made} if method == "lora" else {"model": made, "adapter": None}


def parameters_of(model: dict[str, str | None], **others: Any) -> dict[str, Any]:
    return {"server": "scoring", "served_name": "judge", "context_tokens": 256, "parallel": 3, **model, **others}


@pytest.fixture(scope="module")
def adapter(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    return trained(tiny_model_folder, tmp_path_factory.mktemp("reward") / "run", "lora")


@pytest.fixture(scope="module")
def serving(adapter: dict[str, str | None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    run_folder = tmp_path_factory.mktemp("run")
    with started("runner.programs.serve.replica", run_folder, parameters_of(adapter)) as program:
        program.ready()
        yield program


def scored(client: ServerClient, messages: Any, **others: Any) -> list[float]:
    answer = client.post("/v1/pooling", {"model": "judge", "messages": messages, **others})
    assert [row["index"] for row in answer["data"]] == list(range(len(answer["data"])))
    return [row["data"][0] for row in answer["data"]]


def earned(model: dict[str, str | None]) -> list[float]:
    """What the recipe ``rl`` pays for the same replies with the model itself."""
    pay = make_reward({"reward_function": "reward_model"}, {"reward_model": model}, choose_device("fp32"))
    return [pay(Prompt("row", [QUESTION], [], None), reply, 1) for reply in REPLIES]


def test_scores_are_those_of_training_alone_and_in_batches(serving: Started, adapter: dict[str, str | None]) -> None:
    client, expected = serving.client(), earned(adapter)
    assert scored(client, CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    assert [scored(client, one)[0] for one in CONVERSATIONS] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(REPLIES)


def test_many_clients_at_once_get_their_own_scores(serving: Started, adapter: dict[str, str | None]) -> None:
    client, expected = serving.client(), earned(adapter)
    with ThreadPoolExecutor(8) as pool:
        numbers = [number % len(REPLIES) for number in range(40)]
        scores = list(pool.map(lambda number: scored(client, CONVERSATIONS[number])[0], numbers))
    assert scores == pytest.approx([expected[number] for number in numbers], abs=1e-5)


def test_the_answer_has_the_form_of_vllm_and_counts_tokens(serving: Started) -> None:
    answer = serving.client().post("/v1/pooling", {"model": "judge", "messages": CONVERSATIONS[0]})
    assert answer["object"] == "list"
    assert answer["data"][0]["object"] == "pooling"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 5
    ready = serving.ready()
    assert ready["parity"] is None
    assert ready["engine"].startswith("transformers ")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"messages": [QUESTION, {"role": "assistant", "content": "many " * 300}]}, 400, "context_length_exceeded"),
        ({"messages": [QUESTION]}, 400, "bad_messages"),
        ({"model": "other", "messages": CONVERSATIONS[0]}, 404, "model_not_found"),
    ],
)
def test_the_server_refuses_in_words(serving: Started, body: dict[str, Any], status: int, code: str) -> None:
    with pytest.raises(ServerUnavailable, match=f'{status} .*"code": "{code}"'):
        serving.client().post("/v1/pooling", {"model": "judge", **body})


def test_the_server_refuses_another_key_and_a_body_that_is_too_large(serving: Started) -> None:
    with pytest.raises(ServerUnavailable, match="401"):
        ServerClient(serving.client().endpoint, "wrong").post("/v1/pooling", {"model": "judge"})
    with pytest.raises(ServerUnavailable, match="too_large"):
        serving.client().post("/v1/pooling", {"model": "x" * (17 * 2**20)})


@pytest.mark.slow
def test_a_full_reward_model_is_served_and_stops_within_five_seconds(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = trained(tiny_model_folder, tmp_path / "reward", "full")
    with started("runner.programs.serve.replica", tmp_path / "run", parameters_of(model)) as program:
        assert scored(program.client(), CONVERSATIONS) == pytest.approx(earned(model), abs=1e-5)
        code, seconds = program.stop()
    assert code == 143
    assert seconds < 5
    assert not (tmp_path / "run" / "work" / "server.sock").exists()


@pytest.mark.slow
def test_a_model_without_a_head_that_scores_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    model: dict[str, str | None] = {"model": str(tiny_model_folder), "adapter": None}
    with started("runner.programs.serve.replica", tmp_path, parameters_of(model)) as program:
        assert program.process.wait(60) == exits.USER_ERROR
    assert last_error(tmp_path)["code"] == "model_unsupported"
    with pytest.raises(ProgramError, match="no classifying model"):
        earned(model)


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ("{", None, "malformed_json"),
        ("[]", None, "wrong_type"),
        ({"messages": "x"}, "messages", "required"),
        ({"messages": []}, "messages", "required"),
        ({"messages": [[]]}, "messages[0]", "bad_messages"),
        ({"messages": [CONVERSATIONS[0], [QUESTION]]}, "messages[1]", "bad_messages"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages", "bad_messages"),
        ({"messages": [CONVERSATIONS[0]] * 257}, "messages", "too_many"),
        ({"input": "text"}, "input", "unknown_field"),
        ({"messages": CONVERSATIONS, "softmax": True}, "softmax", "unknown_field"),
        ({"messages": CONVERSATIONS, "encoding_format": "base64"}, "encoding_format", "not_a_choice"),
    ],
)
def test_a_bad_request_names_its_field(body: Any, field: str | None, code: str) -> None:
    text = body if isinstance(body, str) else json.dumps({"model": "judge", **body})
    with pytest.raises(Refusal) as caught:
        conversations_of(text.encode(), "judge")
    assert (caught.value.status, caught.value.code, caught.value.field) == (400, code, field)


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(Refusal) as caught:
        answer_of([1.0, float("nan")], 3, "judge")
    assert (caught.value.status, caught.value.code) == (500, "score_not_finite")


def test_batches_gather_fail_alone_and_do_not_grow_without_end() -> None:
    sizes: list[int] = []

    def scores(rows: Sequence[Sequence[int]]) -> list[float]:
        sizes.append(len(rows))
        if rows[0][0] < 0:
            raise RuntimeError("broken")
        return [float(row[0]) for row in rows]

    async def main() -> None:
        batcher = Batcher(scores, 4)
        running = asyncio.create_task(batcher.run())
        assert await batcher.score([[3, 3], [1], [2], [5], [4]]) == [3, 1, 2, 5, 4]
        assert sizes == [4, 1]
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.score([[-1]])
        assert await batcher.score([[7]]) == [7]
        with pytest.raises(Refusal) as caught:
            await batcher.score([[1]] * (MAX_WAITING + 1))
        assert caught.value.code == "overloaded"
        running.cancel()

    asyncio.run(main())
