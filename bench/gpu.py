"""LoRA training on one GPU: ours beside plain TRL and PEFT, for shapes of 0.6B to 8B with random weights.

``python -m bench.gpu [--tiny] [--shapes 0.6B,1.7B] [--steps N]`` prints JSON lines: the peak of a large product first,
then for each shape the losses of both sides, tokens per second, their share of that peak and memory. The share counts
what is necessary: 4 operations for each token and weight of the layers, and for each labelled one of the head.
Nothing is downloaded and nothing but the standard output written. ``--tiny``: a small shape, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.contract.knobs import check_hyperparameters
from runner.contract.run_spec import RunSpec
from runner.programs.lib.adapters import add_lora
from runner.programs.lib.attention import sample_by_sample
from runner.programs.lib.batches import Packed, Sample
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter
from runner.programs.lib.fast_lora import quicken_lora
from runner.programs.lib.model import Device, choose_device
from runner.programs.lib.training import Batch, Plan, train

#: hidden, intermediate, layers, heads, heads of keys and values, tied; as Qwen3 of that size, vocabulary 151,936.
SHAPES = {
    "0.6B": (1024, 3072, 28, 16, 8, True),
    "1.7B": (2048, 6144, 28, 16, 8, True),
    "4B": (2560, 9728, 36, 32, 8, True),
    "8B": (4096, 12288, 36, 32, 8, False),
    "tiny": (128, 256, 2, 4, 2, True),
}
ROW_TOKENS, LORA_R, LEARNING_RATE = 2048, 16, 1e-4
#: Relative: bf16 products in another order. In float32 (``--tiny`` on a CPU) the losses agree far closer.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}


def main() -> None:
    """Measure every shape."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--shapes", default="0.6B,1.7B,4B,8B")
    options.add_argument("--steps", type=int, default=12)
    given = options.parse_args()
    device = choose_device("fp32" if given.tiny and not torch.cuda.is_available() else "bf16")
    if device.device.type == "cpu" and not given.tiny:
        raise SystemExit("no GPU here; --tiny shows on a CPU that all of this runs")
    peak = product_peak_flops(device, 512 if given.tiny else 8192)
    say("product_peak", device=device.name, tflops=round(peak / 1e12, 2), torch=torch.__version__)
    for name in ["tiny"] if given.tiny else given.shapes.split(","):
        measure(name, given.steps, device, peak)
        release(device)


def measure(name: str, steps: int, device: Device, peak: float) -> None:
    """Both sides of one shape, the other order for every second one; a side that does not fit is told and left out.

    Raises SystemExit where the losses differ.
    """
    samples, found = samples_of(name, steps), {}
    for side, run in (("ours", ours), ("trl", plain)) if len(name) % 2 else (("trl", plain), ("ours", ours)):
        release(device)
        try:
            found[side] = run(name, samples, device)
        except (torch.OutOfMemoryError, ProgramError) as error:  # ours says it in its own words
            if isinstance(error, ProgramError) and error.code != "out_of_memory":
                raise
            say("does_not_fit", shape=name, side=side)
    losses = [figures.pop("losses") for figures in found.values()]
    if len(found) == 2:
        worst = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
        say("parity", shape=name, steps=len(losses[0]), worst_relative_difference=worst)
        if worst > TOLERANCE[device.autocast_dtype or torch.float32]:
            raise SystemExit(f"losses of {name} differ by {worst:.2%}")
    for side, figures in found.items():
        share = 4 * figures.pop("necessary_weights") * figures["tokens_per_s"] / peak
        say("speed", shape=name, side=side, share_of_peak=round(share, 3), **figures)
    if len(found) == 2:
        ratio = found["ours"]["tokens_per_s"] / found["trl"]["tokens_per_s"]
        say("ratio", shape=name, times_faster=round(ratio, 2))


def say(measure: str, **figures: Any) -> None:
    """One JSON line."""
    print(json.dumps({"bench": "gpu", "measure": measure, **figures}), flush=True)


def product_peak_flops(device: Device, size: int) -> float:
    """Floating point operations a second of a square product in the device's precision: the best of twenty."""
    left, right = (
        torch.randn(size, size, device=device.device).to(device.autocast_dtype or torch.float32) for _ in range(2)
    )
    best = float("inf")
    for _ in range(20):
        began = now(device)
        left @ right
        best = min(best, now(device) - began)
    return 2 * size**3 / best


def now(device: Device) -> float:
    """The time when all that was asked for is done."""
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def release(device: Device) -> None:
    """Give memory back, and count its peak anew."""
    gc.collect()
    if device.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def samples_of(name: str, steps: int) -> list[list[Sample]]:
    """For each step samples of log-normal lengths that fill one row, 40 % labelled."""
    chance, row_tokens = random.Random(7), 256 if name == "tiny" else ROW_TOKENS
    made: list[list[Sample]] = []
    for step in range(steps):
        left, chosen = row_tokens, []
        while left >= 8:
            size = min(left, max(8, int(chance.lognormvariate(0, 0.9) * 130)))
            ids = torch.tensor([chance.randrange(100_000 if name != "tiny" else 500) for _ in range(size)])
            chosen.append(Sample(f"step {step}", ids.int(), torch.arange(size) >= 0.6 * size))
            left -= size
        made.append(chosen)
    return made


def random_model(name: str, device: Device) -> tuple[Any, Any]:
    """A model of the shape with LoRA and the same random weights at every call; frozen weights as they are computed."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, intermediate, layers, heads, groups, is_tied = SHAPES[name]
    config = Qwen3Config(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=32 if name == "tiny" else 128, tie_word_embeddings=is_tied,
        vocab_size=600 if name == "tiny" else 151_936, max_position_embeddings=4096, bos_token_id=None,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(device.autocast_dtype or torch.float32)
    try:
        with device.device:
            model: Any = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(1)
    return model, add_lora(model, name, knobs_of(1))


def knobs_of(steps: int) -> dict[str, Any]:
    """Rank 16 on all linear layers."""
    given = {
        "max_steps": steps, "learning_rate": LEARNING_RATE, "lora_r": LORA_R, "warmup_ratio": 0.0, "logging_steps": 1,
    }  # fmt: skip
    return check_hyperparameters("sft", "lora", given)


def figures_of(model: Any, marks: list[float], samples: list[list[Sample]], device: Device) -> dict[str, Any]:
    """Speed over the second half of the steps, memory, and how many weights a token must meet on the average."""
    half, tokens = len(samples) // 2, [sum(len(sample.token_ids) for sample in chosen) for chosen in samples]
    labelled = sum(int(sample.is_label[1:].sum()) for chosen in samples for sample in chosen) / sum(tokens)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    tables = {id(table): table.numel() for table in (head, embeddings)}  # which may be one
    layers = model.num_parameters() - sum(tables.values())
    return {
        "tokens_per_s": round(sum(tokens[half:]) / (marks[-1] - marks[half]), 1),
        "parameters": model.num_parameters(), "necessary_weights": layers + labelled * head.numel(),
        **device.peak_memory_mib(),
    }  # fmt: skip


def ours(name: str, samples: list[list[Sample]], device: Device) -> dict[str, Any]:
    """The loop of ``sft``."""
    model, package = random_model(name, device)
    quicken_lora(package)
    marks: list[float] = []
    losses: list[float] = []

    class Silent(Reporter):
        def metric(self, step: int, total_steps: int, epoch: float, values: Mapping[str, float]) -> None:
            losses.append(values["train/loss"])

        def _line(self, level: str, text: str) -> None:
            """Not printed."""

    def batches_of(step: int) -> list[Batch]:
        marks.append(now(device))
        return Packed(ROW_TOKENS)(samples[step - 1])

    with tempfile.TemporaryDirectory() as folder, sample_by_sample(model):
        context = ProgramContext(Path(folder), RunSpec("fine_tune", None, {}), Silent(Path(folder)))
        train(context, model, Plan(batches_of, len(samples)), knobs_of(len(samples)), device)
    marks.append(now(device))
    return {"losses": losses, **figures_of(model, marks, samples, device)}


def plain(name: str, samples: list[list[Sample]], device: Device) -> dict[str, Any]:
    """TRL's trainer over the same samples, a step's samples in one padding-free batch, without recomputing."""
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from tests.programs.tiny_models import write_tiny_tokenizer

    _, package = random_model(name, device)
    marks: list[float] = []

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(now(device))

    rows = [{"steps": number} for number in range(len(samples))]
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_tokenizer(Path(folder) / "tokenizer")
        trainer = SFTTrainer(
            model=package,
            args=SFTConfig(
                output_dir=folder, max_steps=len(samples), per_device_train_batch_size=1, disable_tqdm=True,
                bf16=bool(device.autocast_dtype), gradient_checkpointing=False, learning_rate=LEARNING_RATE,
                lr_scheduler_type="cosine", adam_beta2=0.95, optim="adamw_torch_fused", logging_steps=1, report_to=[],
                save_strategy="no", train_sampling_strategy="sequential", remove_unused_columns=False, max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=device.device.type == "cpu",
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=lambda batch: flattened(samples[batch[0]["steps"]]),
            processing_class=AutoTokenizer.from_pretrained(Path(folder) / "tokenizer"),
        )  # fmt: skip
        trainer.add_callback(Timer())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    marks.append(now(device))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, **figures_of(package, marks, samples, device)}


def flattened(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """One row of samples with positions that start anew, from which transformers makes the mask."""
    labels = []
    for sample in samples:
        own = torch.where(sample.is_label, sample.token_ids.long(), -100)
        own[0] = -100
        labels.append(own)
    return {
        "input_ids": torch.cat([sample.token_ids.long() for sample in samples])[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(len(sample.token_ids)) for sample in samples])[None],
    }


if __name__ == "__main__":
    main()
