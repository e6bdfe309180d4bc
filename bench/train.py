"""Tokens per CPU second and peak memory of LoRA training: ours beside TRL and LLaMA-Factory, on the same samples.

``python -m bench.train [--quick] [--platform] [--case small|large]`` prints JSON lines. First the losses of 20 steps
in float32 must be TRL's within 1e-4. Every measurement is a process of its own, in turn (ABBA); one short step warms it
up, and the steps after it count. LLaMA-Factory is installed from PyPI into ``var/bench-llamafactory`` the first time.

Memory is taken alike of every side: ``peak_mib`` is the kernel's highest resident memory of the process, libraries and
mapped weights included; ``peak_anon_mib`` the highest anonymous part of it, which no file backs, looked at each
5 ms; ``peak_above_ready_mib`` what comes on top after the model with its adapters is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Case -> a body and its vocabulary. Heads are 64 wide, a third of them hold keys and values.
SHAPES = {
    "small": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 151_936},
    "large": {"hidden_size": 768, "intermediate_size": 2688, "num_hidden_layers": 12, "vocab_size": 32_000},
}
SIDES = ("trl", "trl_tuned", "llamafactory", "ours")
MEDIAN_TOKENS, SPREAD, MAX_TOKENS, LABELLED, BATCH = 130, 0.9, 1024, 0.4, 8
PARITY_STEPS, PARITY_TOKENS, TOLERANCE = 20, 24, 1e-4
LORA_R, LEARNING_RATE = 16, 2e-4
MEMORY, WATCH_INTERVAL_S = ("peak_mib", "peak_anon_mib", "peak_above_ready_mib"), 0.005
PEAK_PINNED = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1"}
#: LLaMA-Factory 0.9.5 with the newest that it allows; torch and what else it shares come from our environment.
THEIRS = (
    "llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0", "datasets==4.0.0",
    "accelerate==1.11.0", "torchdata==0.11.0", "tokenizers==0.22.2", "huggingface_hub==1.9.0", "omegaconf",
    "antlr4-python3-runtime==4.9.3", "tyro<0.9.0", "av==16.0.0", "shtab", "typeguard", "docstring-parser", "einops",
    "fire", "termcolor", "hf-transfer", "tiktoken", "sentencepiece", "httpx", "httpcore", "h11", "typer",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """One measurement. ``steps``: measured ones; ``precision``: bf16, or fp32 for the comparison of losses."""

    side: str
    case: str
    folder: str
    steps: int
    precision: str = "bf16"


def main() -> None:
    """Compare the losses, then measure all sides in turn and print ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="two rounds of one step")
    options.add_argument("--platform", action="store_true", help="bar P14: what the platform adds to a program")
    options.add_argument("--case", choices=tuple(SHAPES))
    options.add_argument("--rounds", type=int)
    given = options.parse_args()
    if given.platform:
        from bench.train_platform import measure_platform  # late: it imports this module

        measure_platform(3 if given.quick else 5)
        return
    rounds, steps = given.rounds or (2 if given.quick else 5), 1 if given.quick else 3
    for case in [given.case] if given.case else list(SHAPES):
        with tempfile.TemporaryDirectory(prefix="clavier-bench-") as folder:
            make_base(Path(folder), case)
            compare_losses(case, folder)
            measure(case, folder, rounds, steps)


def compare_losses(case: str, folder: str) -> None:
    """Raises SystemExit where a step's loss differs from TRL's by more than 1e-4."""
    losses = [run(Work(side, case, folder, PARITY_STEPS, "fp32"))["losses"] for side in ("trl", "ours")]
    worst = max(abs(left - right) for left, right in zip(*losses, strict=True))
    say(case, "parity", steps=len(losses[0]), worst_difference=worst, first=losses[0][0], last=losses[0][-1])
    if worst > TOLERANCE or len(losses[0]) != PARITY_STEPS:
        raise SystemExit(f"losses differ by {worst}")


def measure(case: str, folder: str, rounds: int, steps: int) -> None:
    """All sides in turn; medians with the spread, and how many times ours is better."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            try:
                found[side].append(run(Work(side, case, folder, steps)))
            except subprocess.CalledProcessError as error:
                say(case, "failed", side=side, why=str(error.stderr)[-400:])
    for side, results in found.items():
        if results:
            say(case, "speed", side=side, rounds=len(results), labelled_share=results[0]["labelled_share"],
                **{name: spread([one[name] for one in results]) for name in
                   ("tokens_per_cpu_s", "tokens_per_s", *MEMORY)})  # fmt: skip
    for side in SIDES[:-1]:
        if found[side] and found["ours"]:
            times = {
                name: statistics.median(one[name] for one in found[side])
                / statistics.median(one[name] for one in found["ours"])
                for name in ("tokens_per_cpu_s", *MEMORY)
            }
            say(case, "ratio", against=side, times_faster=round(1 / times["tokens_per_cpu_s"], 2),
                times_less={name: round(times[name], 2) for name in MEMORY})  # fmt: skip


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and most."""
    return [round(f(values), 1) for f in (statistics.median, min, max)]


def say(case: str, measure: str, **figures: Any) -> None:
    """One JSON line."""
    facts = {"bench": "train", "case": case, "measure": measure, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps({**facts, "cpus": os.cpu_count(), "machine": platform.machine(), **figures}), flush=True)


def run(work: Work) -> dict[str, Any]:
    """One measurement in a process of its own. Raises CalledProcessError."""
    python = llamafactory() if work.side == "llamafactory" else Path(sys.executable)
    arguments = [work.side, work.case, work.folder, str(work.steps), work.precision]
    environment = {**os.environ, **PEAK_PINNED, "PYTHONPATH": str(ROOT), "BENCH_INSIDE": " ".join(arguments)}
    done = subprocess.run(
        [str(python), "-m", "bench.train"], env=environment, cwd=work.folder, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def llamafactory() -> Path:
    """The Python of LLaMA-Factory's own environment, made where it is missing."""
    home = Path(os.environ.get("BENCH_LLAMAFACTORY", str(ROOT / "var/bench-llamafactory")))
    python = home / "bin/python"
    if not (home / "ready").exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        site = next(home.glob("lib/python*/site-packages"))
        shared = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "zz-shared.pth").write_text(f"{shared}\n", encoding="utf-8")  # its own packages come first
        # Audio is not used here, and the wheel of torchaudio needs a torch with CUDA.
        (site / "torchaudio.py").write_text("", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "-q", "--no-deps", *THEIRS]
        subprocess.run(install, check=True, stdout=sys.stderr)
        (home / "ready").touch()
    return python


def samples_of(case: str, steps: int, precision: str) -> list[tuple[list[int], list[bool]]]:
    """Token ids and labels: 8 short samples to warm up, then 8 a step; log-normal lengths, 40 % labelled.

    For the comparison of losses (fp32) 2 short samples a step.
    """
    chance = random.Random(7)
    if precision == "fp32":
        sizes = [chance.randint(6, PARITY_TOKENS) for _ in range(2 * steps)]
    else:
        drawn = [int(min(MAX_TOKENS, max(8, chance.lognormvariate(0, SPREAD) * MEDIAN_TOKENS))) for _ in range(4096)]
        sizes = [16] * BATCH + drawn[: BATCH * steps]
    vocabulary = min(SHAPES[case]["vocab_size"], 32_000)
    return [
        ([chance.randrange(vocabulary) for _ in range(size)], [at >= size * (1 - LABELLED) for at in range(size)])
        for size in sizes
    ]


def make_base(folder: Path, case: str) -> None:
    """A base with random weights in bf16, as models are published, and a tokenizer that only pads."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.programs.tiny_models import write_tiny_tokenizer

    shape: Mapping[str, Any] = SHAPES[case]
    heads = shape["hidden_size"] // 64
    torch.manual_seed(0)
    config = Qwen2Config(
        **shape, num_attention_heads=heads, num_key_value_heads=heads // 3, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "base")
    write_tiny_tokenizer(folder / "base")


class Meter:
    """CPU and wall time at the start of each step; the tokens of each step; the memory of the whole process."""

    def __init__(self) -> None:
        self.anon_mib, self.ready_mib = 0.0, 0.0
        self.times: list[tuple[float, float]] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def ready(self) -> None:
        """The model with its adapters is there, and training begins."""
        self.ready_mib = resident_mib("VmRSS")

    def mark(self) -> None:
        self.times.append((time.process_time(), time.perf_counter()))

    def result(self) -> dict[str, Any]:
        """Of the steps after the first, which warms up."""
        self.mark()
        cpu_s, wall_s = (self.times[-1][at] - self.times[1][at] for at in (0, 1))
        tokens, peak_mib = sum(self.tokens[1 : len(self.times) - 1]), resident_mib("VmHWM")
        return {
            "losses": self.losses, "tokens": tokens, "tokens_per_cpu_s": tokens / cpu_s,
            "tokens_per_s": tokens / wall_s, "peak_mib": peak_mib, "peak_anon_mib": self.anon_mib,
            "peak_above_ready_mib": peak_mib - self.ready_mib, "labelled_share": LABELLED,
        }  # fmt: skip

    def _watch(self) -> None:
        while True:
            self.anon_mib = max(self.anon_mib, resident_mib("RssAnon"))
            time.sleep(WATCH_INTERVAL_S)


def resident_mib(name: str) -> float:
    """A line of ``/proc/self/status``: VmRSS, VmHWM (the highest VmRSS so far) or RssAnon."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"\n{name}:")[2].split(maxsplit=1)[0]) / 1024


def inside(work: Work) -> dict[str, Any]:
    """The measurement, in its process."""
    import torch

    torch.set_num_threads(1)
    sides: dict[str, Callable[[Work], dict[str, Any]]] = {
        "ours": ours, "trl": theirs, "trl_tuned": theirs, "llamafactory": factory,
    }  # fmt: skip
    return sides[work.side](work)


def ours(work: Work) -> dict[str, Any]:
    """The loop of ``sft`` with its adapters, packing and loss."""
    import torch

    from runner.contract.knobs import check_hyperparameters
    from runner.contract.run_spec import RunSpec
    from runner.programs.lib.adapters import add_lora
    from runner.programs.lib.attention import sample_by_sample
    from runner.programs.lib.batches import Packed, Sample, row_tokens
    from runner.programs.lib.events import ProgramContext, Reporter
    from runner.programs.lib.fast_lora import quicken_lora
    from runner.programs.lib.lean_layers import spare_activations
    from runner.programs.lib.model import choose_device, load_causal_model
    from runner.programs.lib.recipe import training_dtype
    from runner.programs.lib.training import Batch, Plan, train

    meter = Meter()
    per_step = 2 if work.precision == "fp32" else BATCH
    samples = [
        Sample(str(number), torch.tensor(ids, dtype=torch.int32), torch.tensor(is_label))
        for number, (ids, is_label) in enumerate(samples_of(work.case, work.steps, work.precision))
    ]
    steps = len(samples) // per_step
    knobs = check_hyperparameters("sft", "lora", knobs_of(steps))
    device = choose_device(work.precision)
    model = load_causal_model(Path(work.folder) / "base", training_dtype("lora", device), device.device)
    torch.manual_seed(0)
    quicken_lora(add_lora(model, "base", knobs))
    spare_activations(model)

    class Silent(Reporter):
        def metric(self, step: int, total_steps: int, epoch: float, values: Mapping[str, float]) -> None:
            meter.losses.append(values["train/loss"])

    def batches_of(step: int) -> list[Batch]:
        meter.mark()
        chosen = samples[(step - 1) * per_step : step * per_step]
        meter.tokens.append(sum(len(sample.token_ids) for sample in chosen))
        return Packed(row_tokens(samples, per_step, device.device.type))(chosen)

    with tempfile.TemporaryDirectory() as run_folder, sample_by_sample(model):
        context = ProgramContext(Path(run_folder), RunSpec("fine_tune", None, {}), Silent(Path(run_folder)))
        meter.ready()
        train(context, model, Plan(batches_of, steps), knobs, device)
    return meter.result()


def knobs_of(steps: int) -> dict[str, Any]:
    """The knobs of ours that the other sides are given too."""
    return {
        "max_steps": steps, "learning_rate": LEARNING_RATE, "lora_r": LORA_R, "lora_alpha": 2 * LORA_R,
        "warmup_ratio": 0.0, "logging_steps": 1,
    }  # fmt: skip


def theirs(work: Work) -> dict[str, Any]:
    """TRL as its defaults are; tuned: packed, no activation checkpointing. For the losses: float32, unpacked."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    meter = Meter()
    samples = samples_of(work.case, work.steps, work.precision)
    base, is_exact = Path(work.folder) / "base", work.precision == "fp32"
    fixed: dict[str, Any] = {
        "output_dir": str(Path(work.folder) / "trl"), "report_to": [], "save_strategy": "no", "use_cpu": True,
        "learning_rate": LEARNING_RATE, "logging_steps": 1, "completion_only_loss": True, "disable_tqdm": True,
        "train_sampling_strategy": "sequential", "max_steps": len(samples) // (2 if is_exact else BATCH),
    }  # fmt: skip
    exact = {
        "per_device_train_batch_size": 2, "bf16": False, "gradient_checkpointing": False, "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine", "optim": "adamw_torch_fused",
    }  # fmt: skip
    tuned = {"packing": True, "gradient_checkpointing": False, "per_device_train_batch_size": 1}
    more = exact if is_exact else tuned if work.side == "trl_tuned" else {}
    if work.side == "trl_tuned":  # a row of 1,024 tokens to warm up, and one a step
        samples = samples_of(work.case, work.steps + 1, work.precision)[BATCH:]
        fixed["max_steps"] = work.steps + 1
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=LORA_R, lora_alpha=2 * LORA_R, lora_dropout=0.0, target_modules="all-linear"
    )
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(base, dtype=torch.float32 if is_exact else "auto")
    torch.manual_seed(0)
    trainer = SFTTrainer(
        model=get_peft_model(model, lora),
        args=SFTConfig(**fixed, **more),
        train_dataset=Dataset.from_list(
            [{"input_ids": ids, "completion_mask": [int(one) for one in is_label]} for ids, is_label in samples]
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.data_collator = counting(trainer.data_collator, meter)
    trainer.add_callback(timer(meter))
    trainer.train()
    meter.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return meter.result()


def counting(collate: Callable[[Any], Any], meter: Meter) -> Callable[[Any], Any]:
    """The collator, which counts the tokens that are no padding."""

    def collate_and_count(samples: Any) -> Any:
        meter.tokens.append(sum(len(sample["input_ids"]) for sample in samples))
        return collate(samples)

    return collate_and_count


def timer(meter: Meter) -> Any:
    """A callback of transformers that marks the start of training and of each step."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.ready()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.mark()

    return Timer()


def factory(work: Work) -> dict[str, Any]:
    """LLaMA-Factory with the settings of its own LoRA examples, on samples that are tokens already."""
    from datasets import Dataset, DatasetDict
    from llamafactory.train.sft import workflow
    from llamafactory.train.tuner import run_exp

    meter = Meter()
    samples = samples_of(work.case, work.steps, work.precision)
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids),
         "labels": [token if learned else -100 for token, learned in zip(ids, is_label, strict=True)]}
        for ids, is_label in samples
    ]  # fmt: skip
    tokens = Path(work.folder) / f"tokens-{os.getpid()}"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tokens))
    collator = workflow.SFTDataCollatorWith4DAttentionMask.__call__

    def collate_and_count(self: Any, features: Any) -> Any:
        meter.tokens.append(sum(len(sample["input_ids"]) for sample in features))
        return collator(self, features)

    workflow.SFTDataCollatorWith4DAttentionMask.__call__ = collate_and_count
    run_exp(
        {
            "stage": "sft", "do_train": True, "model_name_or_path": f"{work.folder}/base", "template": "default",
            "finetuning_type": "lora", "lora_rank": LORA_R, "lora_alpha": 2 * LORA_R, "lora_target": "all",
            "tokenized_path": str(tokens), "output_dir": str(tokens) + "-out", "per_device_train_batch_size": BATCH,
            "max_steps": len(samples) // BATCH, "learning_rate": LEARNING_RATE, "logging_steps": 1, "bf16": True,
            "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_shuffling": True, "cutoff_len": 1024,
            "dataset": "none", "overwrite_cache": False,
        },
        callbacks=[timer(meter)],
    )  # fmt: skip
    return meter.result()


if __name__ == "__main__":
    if "BENCH_INSIDE" in os.environ:
        side, case, folder, steps, precision = os.environ["BENCH_INSIDE"].split()
        print("\n" + json.dumps(inside(Work(side, case, folder, int(steps), precision))))
    else:
        main()
