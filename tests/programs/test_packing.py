"""What makes training fast changes nothing else: packed rows, the head's loss, LoRA layers."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.programs.lib import attention, batches, head_loss, recipe, training
from runner.programs.lib import precision as precisions
from runner.programs.lib.adapters import add_lora
from runner.programs.lib.attention import sample_by_sample
from runner.programs.lib.batches import Packed, Sample, pack, pad, row_tokens
from runner.programs.lib.events import ProgramError
from runner.programs.lib.fast_lora import quicken_lora
from runner.programs.lib.head_loss import linear_cross_entropy
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.model import Device, load_causal_model
from runner.programs.lib.render import Renderer
from runner.programs.lib.token_cache import TokenCache
from runner.programs.lib.training import Batch, _loss_sum
from runner.programs.train import sft
from tests.programs.recipes import QUESTIONS, events_of, make_context, values_by_step, write_rows

CPU = Device(torch.device("cpu"), "CPU", None)
ONE_STEP = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "seed": 1}
LORA = {"target_modules": ["all-linear"], "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Seven samples of 3 to 60 tokens, the later part of each learned."""
    random = torch.Generator().manual_seed(3)
    sizes = (60, 3, 17, 31, 8, 44, 5)
    return [
        Sample(
            f"row {number}",
            torch.randint(0, 500, (size,), generator=random, dtype=torch.int32),
            torch.arange(size) >= size // 2,
        )
        for number, size in enumerate(sizes)
    ]


def loaded(folder: Path) -> Any:
    return load_causal_model(folder, torch.float32, torch.device("cpu"))


def losses_in(model: Any, neighbours: list[Sample]) -> dict[str, float]:
    """The loss of each sample of one packed row."""
    nothing = [replace(sample, is_label=torch.zeros_like(sample.is_label)) for sample in neighbours]
    with torch.inference_mode(), sample_by_sample(model):
        return {
            sample.row: float(_loss_sum(model, pack([*nothing[:at], sample, *nothing[at + 1 :]]), CPU))
            for at, sample in enumerate(neighbours)
        }


@pytest.mark.parametrize("shape", ["tiny_model_folder", "tiny_llama_folder"])
def test_a_sample_has_the_same_loss_whoever_its_neighbours_are(
    shape: str, samples: list[Sample], request: pytest.FixtureRequest
) -> None:
    model = loaded(request.getfixturevalue(shape))
    first = losses_in(model, samples)
    assert losses_in(model, samples[::-1]) == pytest.approx(first, abs=1e-5)
    assert losses_in(model, samples[3:] + samples[:3]) == pytest.approx(first, abs=1e-5)
    alone = {sample.row: float(_loss_sum(model, pad([sample]), CPU)) for sample in samples}
    assert alone == pytest.approx(first, abs=1e-5)


def test_a_packed_row_has_the_gradients_of_the_padded_batch(tiny_model_folder: Path, samples: list[Sample]) -> None:
    def gradients(batch: Batch) -> dict[str, torch.Tensor]:
        model = loaded(tiny_model_folder).train()
        if batch.sizes:
            with sample_by_sample(model):
                _loss_sum(model, batch, CPU).backward()
        else:
            _loss_sum(model, batch, CPU).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    packed, padded = gradients(pack(samples)), gradients(pad(samples))
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def plain_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, key_starts: torch.Tensor,
    longest: int, longest_key: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """What torch documents of its ``varlen_attn``, token by token; (tokens, heads, width) in and out."""
    assert starts.dtype == key_starts.dtype == torch.int32
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    bounds = starts.tolist()
    assert longest == longest_key == max(end - start for start, end in itertools.pairwise(bounds))
    group, answers = query.shape[1] // key.shape[1], []
    for start, end in itertools.pairwise(bounds):
        for at in range(start, end):
            seen = slice(start, at + 1)
            keys, values = (tensor[seen].repeat_interleave(group, 1) for tensor in (key, value))
            shares = torch.softmax(torch.einsum("hd,khd->hk", query[at], keys) * scale, -1)
            answers.append(torch.einsum("hk,khd->hd", shares, values))
    return torch.stack(answers)


@pytest.mark.parametrize("shape", ["tiny_model_folder", "tiny_llama_folder"])
def test_one_call_for_all_samples_answers_as_one_for_each(
    shape: str, samples: list[Sample], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is here: the call for all is replaced by what its documentation says, all around it is ours."""
    folder = request.getfixturevalue(shape)

    def gradients() -> dict[str, torch.Tensor]:
        model = loaded(folder).train()
        with sample_by_sample(model):
            _loss_sum(model, pack(samples), CPU).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    by_sample = gradients()
    monkeypatch.setattr(attention, "kernel_of", lambda *_: "flash")
    monkeypatch.setattr(attention, "varlen_attn", plain_varlen)
    together = gradients()
    for name, gradient in by_sample.items():
        torch.testing.assert_close(together[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_torch_takes_the_call_for_all_samples_and_gives_gradients_of_the_same_shapes() -> None:
    """Without numbers: torch's own operator on the device that has shapes only."""
    sizes = {"query": 4, "key": 2, "value": 2}
    given = {name: torch.empty(1, heads, 20, 64, device="meta", dtype=torch.bfloat16) for name, heads in sizes.items()}
    for tensor in given.values():
        tensor.requires_grad_()
    answer = attention._flash(*given.values(), sizes=(5, 12, 3), scaling=0.125)
    assert answer.shape == (1, 20, 4, 64)
    answer.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in given.values())


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "num_samples", "dropout", "expected"),
    [
        ((9, 0), torch.bfloat16, 128, 12, 0.0, "flash"),
        ((8, 0), torch.float16, 64, 2, 0.0, "flash"),
        ((12, 0), torch.bfloat16, 256, 2, 0.0, "flash"),
        ((9, 0), torch.float32, 128, 12, 0.0, "by_sample"),
        ((7, 5), torch.float16, 128, 12, 0.0, "by_sample"),
        (None, torch.bfloat16, 128, 12, 0.0, "by_sample"),
        ((9, 0), torch.bfloat16, 100, 12, 0.0, "by_sample"),
        ((9, 0), torch.bfloat16, 320, 12, 0.0, "by_sample"),
        ((9, 0), torch.bfloat16, 128, 12, 0.1, "by_sample"),
        ((9, 0), torch.bfloat16, 128, 1, 0.0, "by_sample"),
    ],
)
def test_flash_attention_is_taken_where_gpu_format_and_width_allow(
    capability: tuple[int, int] | None, dtype: torch.dtype, width: int, num_samples: int, dropout: float, expected: str
) -> None:
    assert attention.choose_kernel(capability, dtype, width, num_samples, dropout) == expected


def test_a_cpu_attends_sample_by_sample_and_a_gpu_is_asked_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.zeros(1, 2, 4, 64, dtype=torch.bfloat16)
    assert attention.kernel_of(query, 3, 0.0) == "by_sample"

    class OnGpu:
        device, dtype, shape = torch.device("cuda", 0), torch.bfloat16, query.shape

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for has_flash, expected in ((True, "flash"), (False, "by_sample")):
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda has_flash=has_flash: has_flash)
        assert attention.kernel_of(OnGpu(), 3, 0.0) == expected


def test_rows_are_few_and_full_and_hold_every_sample_once(samples: list[Sample]) -> None:
    rows = Packed(64)(samples)
    assert sorted(row for batch in rows for row in batch.rows) == sorted(sample.row for sample in samples)
    assert max(batch.token_ids.numel() for batch in rows) <= 64
    assert len(rows) == 3  # of 168 tokens
    assert len(Packed(200, multiple=2)(samples)) == 2
    assert Packed(64)([]) == []
    assert max(batch.token_ids.numel() for batch in Packed(16)(samples)) == 60  # the longest sample has a row


def test_rows_on_a_cpu_are_short(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    assert row_tokens(samples, 3, "cuda") == row_tokens(samples, 3, "cpu") == 60 + 44 + 31
    monkeypatch.setattr(batches, "CPU_ROW_TOKENS", 64)
    assert row_tokens(samples, 3, "cpu") == 64
    assert row_tokens(samples, 3, "cuda") == 135
    plan = sft.plan_of(samples, samples[:2], {**LORA, **ONE_STEP}, 64)
    assert plan.longest is not None
    assert plan.longest.token_ids.numel() == 60  # the largest that a step may hold of the three longest


def test_a_run_has_the_same_losses_in_rows_of_any_size(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (8, 512):
        monkeypatch.setattr(batches, "CPU_ROW_TOKENS", limit)
        sft.main(make_context(tmp_path / str(limit), parameters_of(tiny_model_folder, tmp_path)))
    for metric in ("train/loss", "eval/loss", "train/grad_norm"):
        short, long = (values_by_step(tmp_path / str(limit), metric) for limit in (8, 512))
        assert len(long) > 0
        assert short == pytest.approx(long, abs=1e-4)


@pytest.mark.parametrize("is_head_trained", [False, True])
def test_the_loss_by_tiles_is_the_plain_one(is_head_trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "POSITIONS_AT_ONCE", 16)
    monkeypatch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", 16 * 48)
    random = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(size, 24, generator=random, dtype=torch.float32) for size in (37, 500))
    weight[7] *= 30  # a share of nearly one, and others that float32 can not tell from zero
    targets = torch.randint(0, 500, (37,), generator=random)

    def graded(function: Any) -> tuple[torch.Tensor, ...]:
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_(is_head_trained)
        loss = function(*inputs)
        (loss / 37).backward()
        return (loss.detach() / 37, *(tensor.grad for tensor in inputs if tensor.grad is not None))

    ours = graded(lambda h, w: linear_cross_entropy(h, w, targets, torch.float32))
    plain = graded(lambda h, w: torch.nn.functional.cross_entropy(h @ w.T, targets, reduction="sum"))
    assert len(ours) == len(plain) == 2 + is_head_trained
    for left, right in zip(ours, plain, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_quick_lora_layers_compute_what_peft_does(tiny_model_folder: Path, samples: list[Sample]) -> None:
    def graded(is_quick: bool) -> dict[str, torch.Tensor]:
        model = loaded(tiny_model_folder)
        torch.manual_seed(1)
        package = add_lora(model, "tiny", LORA)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide the gradient of A
                torch.nn.init.normal_(parameter, std=0.1)
        if is_quick:
            quicken_lora(package)
        loss = _loss_sum(model, pad(samples), CPU)
        loss.backward()
        learned = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        return {"loss": loss.detach(), **learned}

    quick, plain = graded(True), graded(False)
    assert len(plain) > 14
    for name, value in plain.items():
        torch.testing.assert_close(quick[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_a_run_has_the_same_losses_packed_and_padded(tiny_model_folder: Path, tmp_path: Path) -> None:
    for name, packing in (("packed", True), ("padded", False)):
        sft.main(make_context(tmp_path / name, parameters_of(tiny_model_folder, tmp_path, packing=packing)))
    for metric in ("train/loss", "eval/loss", "train/grad_norm"):
        packed, padded = (values_by_step(tmp_path / name, metric) for name in ("packed", "padded"))
        assert len(padded) > 0
        assert packed == pytest.approx(padded, abs=1e-4)


def test_samples_are_padded_where_positions_depend_on_the_whole_row(tiny_model_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sft.main(make_context(tmp_path / "run", parameters_of(base, tmp_path)))
    warning = events_of(tmp_path / "run", "warning")[0]
    assert warning["code"] == "not_packed"
    assert "dynamic" in warning["message"]


def parameters_of(base: Path, tmp_path: Path, **knobs: Any) -> dict[str, Any]:
    data = write_rows(tmp_path / "train.jsonl", QUESTIONS)
    fixed = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "logging_steps": 1}
    return {
        "base_model": str(base),
        "method": "lora",
        "train_data": data,
        "validation_data": data,
        "hyperparameters": {**fixed, "max_seq_length": 64, "precision": "fp32", "max_predict_samples": 0, **knobs},
    }


@pytest.mark.parametrize(
    ("flags", "precision", "width", "expected", "word"),
    [
        ("flags : avx512f avx512_bf16", "auto", 1024, torch.bfloat16, "multiplies"),
        ("flags : avx512f avx512_bf16", "auto", 64, None, "pays from a width"),
        ("flags : avx512f", "auto", 1024, None, "does not multiply bf16"),
        ("flags : avx512f", "bf16", 1024, torch.bfloat16, "emulates"),
        ("flags : avx512_bf16", "fp32", 1024, None, "as asked"),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_multiplies_it(
    flags: str,
    precision: str,
    width: int,
    expected: torch.dtype | None,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n", encoding="utf-8")
    monkeypatch.setattr(precisions, "CPU_FLAGS", tmp_path / "cpuinfo")
    dtype, reason = precisions.choose_dtype(precision, "cpu", width)
    assert dtype == expected
    assert word in reason


def test_fp16_is_refused_on_a_cpu_with_the_reason(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"ten times slower.*use bf16, fp32 or auto") as caught:
        sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, tmp_path, precision="fp16")))
    assert caught.value.field == "precision"


def test_fp16_scales_the_loss_and_outlives_an_overflow(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Device(torch.device("cpu"), "a stand-in for a GPU", torch.float16)
    monkeypatch.setattr(recipe, "choose_device", lambda *_: half)
    monkeypatch.setattr(training, "FIRST_LOSS_SCALE", 2.0**40)
    monkeypatch.setattr(training, "STEPS_TO_DOUBLE", 3)
    sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, tmp_path, max_steps=60, save_steps=60)))
    told = events_of(tmp_path / "run", "metric")
    norms = {event["step"]: event["train/grad_norm"] for event in told if "train/grad_norm" in event}
    skipped = [step for step, norm in norms.items() if norm is None]
    assert 1 in skipped
    assert len(skipped) < 50
    state = json.loads((tmp_path / "run/checkpoints/step-00000060/state.json").read_text(encoding="utf-8"))
    assert 1 < state["progress"]["loss_scale"] < 2.0**40
    losses = values_by_step(tmp_path / "run", "train/loss")
    assert losses[60] < losses[1]


def test_a_second_start_does_not_tokenize_again_and_learns_the_same(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(sft, "LEAST_CACHED_BYTES", 0)
    data = write_rows(tmp_path / "train.jsonl", [*QUESTIONS, {"question": "Long?", "answer": "Very long. " * 60}])
    renderer = Renderer.from_folder(tiny_model_folder)
    cache, report = TokenCache(tmp_path / "tokens"), make_context(tmp_path / "run", {}).report

    def read(max_tokens: int) -> tuple[list[Sample], list[int]]:
        lengths = LengthPolicy(max_tokens, "split")
        return sft.read_samples(Path(data), renderer, lengths, report, cache), lengths.counts

    key = cache.key(Path(data), renderer, LengthPolicy(64, "split"))
    # Of a start that was killed in between and had the same process id.
    (tmp_path / "tokens" / f".tmp-{key}-{os.getpid()}").mkdir(parents=True)
    first, counts = read(64)
    with monkeypatch.context() as patch:
        patch.setattr(sft, "tokenize", never)
        second, counts_again = read(64)
        with pytest.raises(AssertionError, match="tokenized again"):
            read(63)
    assert counts_again == counts
    assert counts[0] == 1
    assert [sample.row for sample in second] == [sample.row for sample in first]
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left.token_ids, right.token_ids)
        assert torch.equal(left.is_label, right.is_label)
    for max_tokens in range(50, 56):
        read(max_tokens)
    assert len(list((tmp_path / "tokens").iterdir())) == 4


def test_little_data_is_not_worth_a_cache(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", QUESTIONS)
    renderer, report = Renderer.from_folder(tiny_model_folder), make_context(tmp_path / "run", {}).report

    samples = sft.read_samples(Path(data), renderer, LengthPolicy(64, "split"), report, TokenCache(tmp_path / "tokens"))

    assert len(samples) == len(QUESTIONS)
    assert not (tmp_path / "tokens").exists()
