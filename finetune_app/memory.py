"""How much memory a training holds at its worst moment, in bytes. Pure functions that follow what the recipes do.

Held all along: weights, the states of the optimizer, a reference or reward model. On top of them come either the
activations of a forward pass with what the loss needs, as the backward pass begins, or the gradients, as it ends. A
transformer layer keeps what its backward pass reads (Korthikanti et al. 2022, section 4), with attention that keeps no
matrix of scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_app.shapes import Job, Load, Machine, Shape
from runner.contract.heads import CPU_ROW_TOKENS, LOGITS_AT_ONCE, PLAIN_HEADS, POSITIONS_AT_ONCE
from runner.contract.knobs import ADAPTER_METHODS

OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0.1, "sgd": 0}
_BYTES_PER_NUMBER = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
#: Bytes of a frozen weight of a linear layer; embeddings and the head are not quantized.
_QUANTIZED_BYTES = {4: 0.52, 8: 1.05}
#: Losses of ``preference`` that score with a fused head, which makes logits a tile at a time (TRL), beside a reference.
FUSED_LOSSES = ("dpo", "ipo", "kto")
#: Positions and vocabulary of a tile of TRL's fused head, and arrays of its size in 32 bits where no GPU fuses them.
TRL_TILE = (4096, 32_768)
TRL_TILE_ARRAYS = 9
#: Arrays of the size of all logits that ORPO and SimPO hold at once: logits, a copy, their gradients.
LOGITS_ARRAYS = 4
#: A row of preferences has a prompt and two replies; a sequence has the prompt and one of them.
SHARE_OF_PAIR = 2 / 3


def peak_memory_bytes(shape: Shape, job: Job, load: Load, machine: Machine) -> float:
    """Bytes held at the worst moment, the longest batch; of a GPU, or of the process; the runtime is not counted."""
    if shape.num_decoder_layers:  # which reads one sample a row
        job = replace(job, knobs={**job.knobs, "packing": False})
    width, trained = number_bytes(job, on_gpu=machine.is_gpu), trained_parameters(shape, job)
    rows = batch_of(job, load, on_gpu=machine.is_gpu)
    shares = machine.num_processes if job.knobs.get("distributed_strategy") == "fsdp" else 1
    held = (
        _base_bytes(shape, job, width) + trained * OPTIMIZER_BYTES.get(str(job.knobs.get("optim", "adamw")), 8)
    ) / shares
    held += _others_bytes(shape, job, width)
    whole = _whole_layers_bytes(shape) if shares > 1 else 0.0
    forward = _layers_bytes(shape, job, rows, width) + _cast_bytes(shape, job, width, shares)
    forward += _head_bytes(shape, job, rows, load, width, on_gpu=machine.is_gpu)
    gradients = 4.0 * trained / shares * (2 if _copies_gradients(job, machine) else 1)
    is_split = rows.tokens < batch_of(job, load, on_gpu=True).tokens  # a CPU lays a batch out in several rows
    if is_accumulating(job) or is_split:
        forward += gradients
    if job.method == "full" and has_head(job):
        # The gradient of the head is there before that of any layer, and once more as it is scaled; of the
        # embeddings, which are the same weights, it comes last.
        forward += 2 * 4.0 * shape.head_parameters
        gradients += 4.0 * shape.head_parameters
    drawing = _drawing_bytes(shape, job, load, width, machine.num_processes)
    return held + whole + max(forward, gradients, drawing)


def trained_parameters(shape: Shape, job: Job) -> int:
    """Weights that get gradients: all, or the adapters of the usual linear layers."""
    if job.method not in ADAPTER_METHODS:
        return shape.num_parameters
    rank = int(job.knobs.get("lora_r") or 16)
    return sum(rank * (rows + columns) for rows, columns in shape.all_matrices)


def number_bytes(job: Job, *, on_gpu: bool) -> float:
    """Of a number that is computed with. Where a CPU may choose, the wider one."""
    precision = str(job.knobs.get("precision", "auto"))
    return _BYTES_PER_NUMBER.get(precision, 2.0 if on_gpu else 4.0)


@dataclass(frozen=True, slots=True)
class Rows:
    """One forward pass: all its tokens, padding included, and those of them that have a loss, at most."""

    tokens: float
    scored: float


def batch_of(job: Job, load: Load, *, on_gpu: bool) -> Rows:
    """The longest batch that the recipe makes of the rows."""
    size = min(int(job.knobs.get("per_device_train_batch_size") or 1), load.num_rows)
    if job.recipe == "rl":
        size = int(job.knobs.get("per_device_train_batch_size") or 1)
        answer = int(job.knobs["max_completion_length"])
        return Rows(size * answer_length(job, load), size * answer)
    if job.recipe in ("sft", "seq2seq") and job.knobs.get("packing"):
        together = load.longest_together(size)
        tokens = together if on_gpu or job.recipe != "sft" else min(together, max(CPU_ROW_TOKENS, load.max_tokens))
        return Rows(tokens, tokens * load.learned_share)
    if job.recipe == "reward" or (job.recipe == "preference" and job.knobs.get("loss_type") != "kto"):
        tokens = 2 * size * max(1.0, SHARE_OF_PAIR * load.max_tokens)
        return Rows(tokens, tokens)
    return Rows(size * load.max_tokens, size * load.max_tokens * load.learned_share)


def answer_length(job: Job, load: Load) -> float:
    """Tokens of a prompt with its answer in reinforcement learning."""
    answer = int(job.knobs["max_completion_length"])
    return min(float(job.knobs["max_seq_length"]), load.max_tokens + answer)


def is_accumulating(job: Job) -> bool:
    """Gradients of one forward pass are there while the next one runs."""
    return int(job.knobs.get("gradient_accumulation_steps") or 1) > 1 or _is_trl_rl(job)


def has_head(job: Job) -> bool:
    """The model ends in a vocabulary; a classifier's and a reward model's head is a few numbers."""
    return job.recipe not in ("classify", "reward")


def is_by_trainer(job: Job) -> bool:
    """A trainer of transformers or TRL trains, not our own loop."""
    return job.recipe in ("preference", "reward", "classify") or _is_trl_rl(job)


def _is_trl_rl(job: Job) -> bool:
    return job.recipe == "rl" and job.knobs.get("algorithm") != "ppo"


def _copies_gradients(job: Job, machine: Machine) -> bool:
    """Several processes of a trainer of transformers sum their gradients in buckets of its own."""
    return machine.num_processes > 1 and is_by_trainer(job) and job.knobs.get("distributed_strategy") != "fsdp"


def _base_bytes(shape: Shape, job: Job, width: float) -> float:
    """The weights: trained ones in 32 bits, frozen ones as they are computed with, or quantized."""
    if job.method not in ADAPTER_METHODS:
        return 4.0 * shape.num_parameters
    adapters = 4.0 * trained_parameters(shape, job)
    if job.method != "qlora":
        return shape.num_parameters * width + adapters
    kept = shape.head_parameters * (1 if shape.is_tied else 2)
    quantized = _QUANTIZED_BYTES[int(job.knobs.get("quantization_bits") or 4)]
    return (shape.num_parameters - kept) * quantized + kept * width + adapters


def _others_bytes(shape: Shape, job: Job, width: float) -> float:
    """Models beside the one that is trained: a copy of the base, or of the first adapter; the one that scores."""
    has_reference = job.recipe == "rl" or (
        job.recipe == "preference" and job.knobs.get("loss_type", "dpo") in FUSED_LOSSES
    )
    reference = 4.0 * trained_parameters(shape, job) if has_reference and job.knobs.get("algorithm") != "ppo" else 0.0
    if has_reference and job.method == "full":
        reference = 4.0 * shape.num_parameters
    return reference + job.reward_parameters * width


def _cast_bytes(shape: Shape, job: Job, width: float, shares: int) -> float:
    """Copies of the trained weights in the format of the products, kept for the backward pass."""
    if width == 4 or job.method in ADAPTER_METHODS:
        return 0.0
    return width * shape.num_parameters / shares


def _whole_layers_bytes(shape: Shape) -> float:
    """Of sharded weights: the embeddings are whole during a pass, and two layers, the one at work and the next."""
    layer = sum(rows * columns for rows, columns in shape.matrices)
    return 4.0 * ((1 if shape.is_tied else 2) * shape.head_parameters + 2 * layer)


def _layers_bytes(shape: Shape, job: Job, rows: Rows, width: float) -> float:
    """Activations that the layers keep, and one layer's worth of passing ones."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    keys = 2 * shape.key_size
    # A norm keeps what it read in 32 bits, what it wrote, and where its weight is trained what it scaled.
    norms = 2 * hidden * (4 + width + (0 if job.method in ADAPTER_METHODS else 4))
    layer = norms + (hidden + 2 * shape.query_size + keys + (4 if shape.is_gated else 2) * inner) * width
    if job.method == "qlora" or job.knobs.get("lora_dropout") or (job.method == "lora" and not has_head(job)):
        layer += (6 * hidden + inner) * width  # each adapter keeps its own copy of what it read
    if not job.knobs.get("gradient_checkpointing"):
        return rows.tokens * layer * (shape.num_layers + 1)
    return rows.tokens * (2 * layer + shape.num_layers * hidden * 4)


def _head_bytes(shape: Shape, job: Job, rows: Rows, load: Load, width: float, *, on_gpu: bool) -> float:
    """What the loss needs beside the layers."""
    vocabulary = shape.vocab_size
    if not has_head(job):
        return 0.0
    if job.knobs.get("algorithm") == "ppo":
        return rows.tokens * vocabulary * 2 * width + rows.scored * vocabulary * 4 * 4
    if _is_trl_rl(job) or (job.recipe == "preference" and job.knobs.get("loss_type", "dpo") in FUSED_LOSSES):
        positions, columns = min(rows.tokens, TRL_TILE[0]), min(vocabulary, TRL_TILE[1])
        tile = positions * columns * (width + (0 if on_gpu else 4 * TRL_TILE_ARRAYS))
        return tile + rows.tokens * shape.hidden_size * (4 + width)
    if job.recipe == "preference":
        return LOGITS_ARRAYS * rows.tokens * vocabulary * width
    if shape.architecture and shape.architecture not in PLAIN_HEADS:
        return rows.tokens * vocabulary * 2 * width + rows.scored * vocabulary * 4 * 3
    limit = LOGITS_AT_ONCE["cuda" if on_gpu else "cpu"]
    numbers = limit if on_gpu else min(limit, min(rows.scored, POSITIONS_AT_ONCE) * vocabulary)
    return numbers * (width + (0 if width == 4 else 4)) + rows.scored * shape.hidden_size * (2 * 4 + width)


def _drawing_bytes(shape: Shape, job: Job, load: Load, width: float, num_processes: int) -> float:
    """Reinforcement learning also answers many prompts at once, without gradients: keys, values, and logits of ppo."""
    if job.recipe != "rl":
        return 0.0
    count = min(int(job.knobs["rollout_batch_size"]), load.num_rows)
    if _is_trl_rl(job):
        count *= int(job.knobs["num_generations"])
    count = -(-count // num_processes)
    tokens, answers = count * answer_length(job, load), count * int(job.knobs["max_completion_length"])
    keys = 2 * shape.key_size
    drawing = tokens * keys * shape.num_layers * width + count * shape.vocab_size * 4 * 3
    if _is_trl_rl(job):
        return drawing
    hidden = tokens * shape.hidden_size * (shape.num_layers + 1) * width
    return max(drawing, hidden + tokens * shape.vocab_size * width + answers * shape.vocab_size * 4 * 3)
