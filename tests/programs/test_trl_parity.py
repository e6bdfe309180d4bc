"""The losses of our recipes and of TRL on the same batches: TRL reads text, or tokens, and uses its own optimizer.

Where a recipe runs TRL's trainer the loss is TRL's own; what is compared is all that we put around it: rendering,
tokens, labels, order, reference model, KTO's foreign replies, optimizer and schedule. TRL has nothing to compare with
for ``classify`` and the encoder-decoders of ``seq2seq`` (transformers' own loss, from transformers' own trainer) and no
PPO any more; a causal ``seq2seq`` is ``sft``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract.alignment_knobs import PREFERENCE_BETAS
from runner.programs.lib.adapters import hold_in_float32
from runner.programs.lib.batches import Padded, shuffled_batches
from runner.programs.lib.data import read_preferences
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.render import Renderer
from runner.programs.train import preference, pretrain, reward, rl, sft
from tests.programs.proofs import EIGHT_QUESTIONS, Cell, cells
from tests.programs.recipes import PREFERENCES, make_context, values_by_step, write_rows

pytestmark = pytest.mark.slow

STEPS = 10
KNOBS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "precision": "fp32",
    "max_steps": STEPS,
}
#: Recipes without a counterpart in TRL, with the reason in the docstring above.
WITHOUT = {"classify", "seq2seq"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def ours(main: Callable[[Any], None], cell: Cell, base: Path, place: Path, data: str, **knobs: Any) -> Path:
    """Train with our recipe; the run folder."""
    parameters = {
        "base_model": str(base),
        "method": cell.method,
        "train_data": data,
        "hyperparameters": {**KNOBS, **cell.knobs, **knobs},
    }
    main(make_context(place / "ours", parameters))
    return place / "ours"


def arguments(config: Any, place: Path, **more: Any) -> Any:
    """TRL's arguments that mean what our knobs mean."""
    common = {
        "output_dir": str(place / "theirs"), "max_steps": STEPS, "per_device_train_batch_size": 4,
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "adam_beta2": 0.95, "optim": "adamw_torch_fused",
        "seed": 42, "logging_steps": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return config(**{**common, **more})


def fresh(base: Path, kind: str = "AutoModelForCausalLM", **options: Any) -> Any:
    """The base as transformers loads it."""
    import transformers

    return getattr(transformers, kind).from_pretrained(base, dtype=torch.float32, **options)


def tokenizer_of(base: Path) -> Any:
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    return load(base)


def logged(trainer: Any, name: str = "loss") -> dict[int, float]:
    """Train with TRL; a value by step. Adapters on a quantized base, which TRL makes bf16, stay float32 as ours do."""
    hold_in_float32(trainer.model)
    trainer.train()
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def texts_of(base: Path, data: str) -> list[dict[str, str]]:
    """Preferences as the texts that TRL reads; it puts the end token after a reply itself."""
    renderer = Renderer.from_folder(base)
    return [
        {
            "prompt": renderer.apply_template(pair.prompt),
            "chosen": pair.chosen["content"],
            "rejected": pair.rejected["content"],
        }
        for _, pair in read_preferences(data)
    ]


def prove_sft(cell: Cell, base: Path, place: Path) -> None:
    """Two passes a step, several turns of answers in one sample; TRL reads our tokens and masks, padded."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}] * 2
    data = write_rows(place / "train.jsonl", [*EIGHT_QUESTIONS[:7], {"messages": turns}])
    sizes = {"max_seq_length": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = ours(sft.main, cell, base, place, data, **sizes)
    renderer = Renderer.from_folder(base)
    policy = LengthPolicy(64, "truncate")
    samples = sft.tokenize(Path(data), renderer, policy, make_context(place / "order", {}).report)
    batches_of, of_row = shuffled_batches(samples, 4, 42, Padded(2)), {sample.row: sample for sample in samples}
    rows = [
        {"input_ids": of_row[row].token_ids.tolist(), "completion_mask": of_row[row].is_label.int().tolist()}
        for step in range(1, STEPS + 1)
        for batch in batches_of(step)
        for row in batch.rows
    ]
    settings = arguments(
        SFTConfig, place, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        train_sampling_strategy="sequential", completion_only_loss=True,
    )  # fmt: skip
    package = their_package(cell, base)
    drawn = {name: p.detach().clone() for name, p in package.named_parameters() if p.requires_grad}
    theirs = SFTTrainer(
        model=package,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(base),
    )
    hold_in_float32(package)
    package.load_state_dict(drawn, strict=False)  # without the rounding to bf16
    compare(values_by_step(run, "train/loss"), logged(theirs))


def prove_preference(cell: Cell, base: Path, place: Path) -> None:
    """TRL reads texts, which it makes into tokens by itself."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    data = write_rows(place / "train.jsonl", PREFERENCES)
    run = ours(preference.main, cell, base, place, data, max_seq_length=96)
    rows: list[dict[str, Any]] = list(texts_of(base, data))
    if cell.loss == "kto":
        rows = [
            {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for row in rows
            for name in ("chosen", "rejected")
        ]
        random.Random(42).shuffle(rows)
    trainer, config, more = {
        "dpo": (DPOTrainer, DPOConfig, {}),
        "ipo": (DPOTrainer, DPOConfig, {"loss_type": "ipo"}),
        "kto": (KTOTrainer, KTOConfig, {}),
        "orpo": (ORPOTrainer, ORPOConfig, {}),
        "simpo": (CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}),
    }[cell.loss]
    settings = arguments(config, place, max_length=96, beta=PREFERENCE_BETAS[cell.loss], **more)
    needs_reference = cell.method == "full" and cell.loss in ("dpo", "ipo", "kto")
    theirs = trainer(
        model=their_package(cell, base),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(base),
        **({"ref_model": fresh(base)} if needs_reference else {}),
    )
    compare(values_by_step(run, "train/loss"), logged(theirs))


def prove_reward(cell: Cell, base: Path, place: Path) -> None:
    """TRL reads texts; the new head is drawn from the same seed."""
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    data = write_rows(place / "train.jsonl", PREFERENCES)
    run = ours(reward.main, cell, base, place, data, max_seq_length=96)
    theirs = RewardTrainer(
        model=their_package(cell, base, "AutoModelForSequenceClassification", "SEQ_CLS"),
        args=arguments(RewardConfig, place, max_length=96),
        train_dataset=Dataset.from_list(texts_of(base, data)),
        processing_class=tokenizer_of(base),
    )
    compare(values_by_step(run, "train/loss"), logged(theirs))


def prove_rl(cell: Cell, base: Path, place: Path) -> None:
    """TRL reads the prompts as texts and draws the same answers from the same seed."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    prompts = [{"prompt": f"Say {word}"} for word in "abcdefgh"]
    sizes = {"max_completion_length": 4, "rollout_batch_size": 8, "update_epochs": 2, "kl_coef": 0.01}
    run = ours(
        rl.main, cell, base, place, write_rows(place / "prompts.jsonl", prompts),
        per_device_train_batch_size=32, reward_function="regex", reward_pattern="[aeiou]", max_seq_length=64, **sizes,
    )  # fmt: skip
    renderer = Renderer.from_folder(base)
    rows = [{"prompt": renderer.apply_template([{"role": "user", "content": row["prompt"]}])} for row in prompts]
    trainer, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[cell.loss]
    settings = arguments(
        config, place, per_device_train_batch_size=32, num_generations=4, num_iterations=2, max_completion_length=4,
        temperature=1.0, beta=0.01, epsilon=0.2,
    )  # fmt: skip

    def earned(completions: list[str], **_: Any) -> list[float]:
        return [float(any(vowel in text for vowel in "aeiou")) for text in completions]

    theirs = trainer(
        model=their_package(cell, base),
        reward_funcs=earned,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(base),
    )
    compare(values_by_step(run, "train/loss"), logged(theirs))
    rewards = [entry["reward"] for entry in theirs.state.log_history if "reward" in entry]
    assert list(values_by_step(run, "reward/mean").values()) == pytest.approx(rewards, abs=1e-6)


def prove_pretrain(cell: Cell, base: Path, place: Path) -> None:
    """Going on from a base; TRL reads the sequences that our batches are cut into, into the second epoch."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    corpus = place / "corpus.txt"
    corpus.write_text("The piano has eighty-eight keys. 钢琴有八十八个键。\n" * 12, encoding="utf-8")
    parameters = {
        "base_model": str(base),
        "train_data": [str(corpus)],
        "hyperparameters": {**KNOBS, "sequence_length": 16, "per_device_train_batch_size": 1},
    }
    context = make_context(place / "ours", parameters)
    pretrain.main(context)
    ids = Path(context.work / "training.tokens").read_bytes()
    tokens = torch.frombuffer(bytearray(ids), dtype=torch.int32)
    batches_of, epoch_steps = pretrain.packed_batches(tokens, 16, 1, 1, 42)
    assert epoch_steps < STEPS
    batches = [batch for step in range(1, STEPS + 1) for batch in batches_of(step)]
    rows = [{"input_ids": row.tolist()} for batch in batches for row in batch.token_ids]
    theirs = SFTTrainer(
        model=their_package(cell, base),
        args=arguments(SFTConfig, place, per_device_train_batch_size=1, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(base),
    )
    compare(values_by_step(place / "ours", "train/loss"), logged(theirs))


def their_package(cell: Cell, base: Path, kind: str = "AutoModelForCausalLM", task: str = "CAUSAL_LM") -> Any:
    """The model, with PEFT's adapter where the cell has one, drawn from the seed of our knobs."""
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    torch.manual_seed(42)
    options: dict[str, Any] = {"num_labels": 1} if task == "SEQ_CLS" else {}
    make: Any = BitsAndBytesConfig
    if cell.bits == "8":
        options["quantization_config"] = make(load_in_8bit=True)
    elif cell.bits:
        options["quantization_config"] = make(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    model = fresh(base, kind, **options)
    model.config.pad_token_id = tokenizer_of(base).pad_token_id
    if cell.method == "full":
        return model
    lora: Any = LoraConfig(task_type=task, r=16, lora_alpha=32.0, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(model, lora)


def compare(ours_by_step: dict[int, float], theirs: dict[int, float]) -> None:
    """Every step within 1e-4, and a loss that moves: equal constants prove nothing."""
    assert len(ours_by_step) == STEPS
    assert max(ours_by_step.values()) - min(ours_by_step.values()) > 1e-3
    assert ours_by_step == pytest.approx(theirs, abs=1e-4)


PARITY: dict[str, Callable[[Cell, Path, Path], None]] = {
    "sft": prove_sft,
    "preference": prove_preference,
    "reward": prove_reward,
    "rl": prove_rl,
    "pretrain": prove_pretrain,
}


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, id=cell.name) for cell in cells() if cell.recipe in PARITY and cell.loss != "ppo"]
)
def test_the_losses_are_those_of_trl_on_the_same_batches(cell: Cell, tiny_model_folder: Path, tmp_path: Path) -> None:
    PARITY[cell.recipe](cell, tiny_model_folder, tmp_path)


def test_every_recipe_is_compared_or_has_nothing_to_be_compared_with() -> None:
    assert {cell.recipe for cell in cells()} == PARITY.keys() | WITHOUT
    assert not PARITY.keys() & WITHOUT


def test_texts_are_learned_whole_as_by_trl(tiny_model_folder: Path, tmp_path: Path) -> None:
    """TRL reads the texts themselves and puts the end token after each."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    base, cell = tiny_model_folder, Cell("sft", "full")
    texts = {f"train.jsonl line {n}": f"{row['question']} {row['answer']}" for n, row in enumerate(EIGHT_QUESTIONS, 1)}
    data = write_rows(tmp_path / "train.jsonl", [{"text": text} for text in texts.values()])
    run = ours(sft.main, cell, base, tmp_path, data)
    samples = sft.tokenize(
        Path(data), Renderer.from_folder(base), LengthPolicy(64, "truncate"), make_context(run, {}).report
    )
    assert all(sample.is_label.all() for sample in samples)
    batches_of = shuffled_batches(samples, 4, 42, Padded(4))
    rows = [{"text": texts[row]} for step in range(1, STEPS + 1) for batch in batches_of(step) for row in batch.rows]
    theirs = SFTTrainer(
        model=fresh(base),
        args=arguments(SFTConfig, tmp_path, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(base),
    )
    compare(values_by_step(run, "train/loss"), logged(theirs))
