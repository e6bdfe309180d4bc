"""Devices and models: what the machine has, how a causal model is loaded, and its loss where something is learned."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.contract.heads import PLAIN_HEADS
from runner.programs.lib.events import ProgramError
from runner.programs.lib.head_loss import linear_cross_entropy
from runner.programs.lib.precision import choose_dtype
from runner.programs.lib.spared import CLIENTS, spared


@dataclass(frozen=True, slots=True)
class Device:
    """Where a program computes. ``autocast_dtype`` None: everything in float32; ``reason``: why this format."""

    device: torch.device
    name: str
    autocast_dtype: torch.dtype | None
    reason: str = ""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def peak_memory_mib(self) -> dict[str, float]:
        """The highest memory so far as metrics: of the GPU where there is one, else of this process."""
        if self.device.type == "cuda":
            return {"memory/gpu_peak_mib": round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)}
        import resource  # POSIX only, as is every executor

        return {"memory/peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def choose_device(precision: str, width: int = 0) -> Device:
    """The GPU where there is one, else the CPU. ``precision`` and ``width`` as in ``choose_dtype``, which raises."""
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", "0"))  # of the processes that torchrun starts each has a GPU
        name = torch.cuda.get_device_name(number)
        return Device(torch.device("cuda", number), name, *choose_dtype(precision, "cuda", width))
    name = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return Device(torch.device("cpu"), name, *choose_dtype(precision, "cpu", width))


def load_causal_model(folder: Path, dtype: torch.dtype, device: torch.device, quantized: Any = None) -> Any:
    """The causal language model of a folder, in eval mode. Raises ProgramError where it must not be loaded.

    ``quantized``: how its weights are quantized while it is loaded (a configuration of transformers).
    """
    options = {"quantization_config": quantized, "device_map": {"": device}} if quantized is not None else {}
    model = _load(folder, architecture_of(folder, "ForCausalLM"), dtype, options)
    return (model if options else model.to(device)).eval()


def load_classifier(folder: Path, dtype: torch.dtype, device: torch.device, labels: Sequence[str]) -> Any:
    """The model of a folder with one output per label (one label: a reward) at the last token of a text.

    The head of a causal model is replaced by a new, random one. Raises ProgramError as ``load_causal_model``.
    """
    architecture = architecture_of(folder, "ForCausalLM", "ForSequenceClassification")
    options = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    model = _load(folder, architecture.replace("ForCausalLM", "ForSequenceClassification"), dtype, options)
    return model.to(device).eval()


def load_encoder_decoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The encoder-decoder of a folder, in eval mode. Raises ProgramError as ``load_causal_model``."""
    architecture = architecture_of(folder, "ForConditionalGeneration")
    return _load(folder, architecture, dtype, {"attn_implementation": "eager"}).to(device).eval()


def architecture_of(folder: Path, *endings: str) -> str:
    """The architecture of a model folder. Raises ProgramError where it brings code or has none of the endings."""
    config = model_config(folder)
    architecture = str((config.get("architectures") or [""])[0])
    if "auto_map" in config:
        raise ProgramError(
            "model_refused", f"the model in {folder.name} wants to run its own code (auto_map)", "base_model"
        )
    if not architecture.endswith(endings):
        kinds = {"ForCausalLM": "causal", "ForSequenceClassification": "classifying"}
        wanted = " or ".join(kinds.get(ending, "encoder-decoder") for ending in endings)
        message = f"{architecture or 'no architecture'} is no {wanted} model known here"
        raise ProgramError("model_unsupported", message, "base_model")
    return architecture


def _load(folder: Path, architecture: str, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    with spared(*CLIENTS):
        # Late: the library takes seconds to import, and data errors are reported before.
        import transformers

        model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise ProgramError("model_unsupported", f"{architecture} is no model known here", "base_model")
    quiet_transformers()
    try:
        options = {"attn_implementation": "sdpa", **options}
        return model_class.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ProgramError(
            "model_invalid", f"the model in {folder.name} can not be loaded: {error}", "base_model"
        ) from None


def quiet_transformers() -> None:
    """Neither progress bars nor the libraries' notes to programmers in the log."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    if (theirs := logging.getLogger("bitsandbytes")).level != logging.ERROR:  # setting it visits all loggers
        theirs.setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    their_logging: Any = transformers_logging  # the library has no types here
    their_logging.disable_progress_bar()
    if their_logging.get_verbosity() != logging.ERROR:
        their_logging.set_verbosity_error()


def model_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises ProgramError where it is missing or unreadable."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProgramError("model_invalid", f"{folder} has no readable config.json: {error}", "base_model") from None
    if not isinstance(config, dict):
        raise ProgramError("model_invalid", f"config.json in {folder} is not an object", "base_model")
    return config


def next_token_loss(
    model: Any,
    token_ids: torch.Tensor,
    is_wanted: torch.Tensor,
    targets: torch.Tensor,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """Sum of the cross entropy of the n wanted positions, in nats, as float32.

    ``token_ids``: (batch, length), padded at the right, where a causal model never looks, or one row of samples of
    ``sizes`` tokens; ``is_wanted``: the same shape, True where the token after is predicted; ``targets``: (n,).
    """
    packed = {} if sizes is None else {"sizes": sizes, "position_ids": positions_of(sizes, token_ids.device)}
    if not has_plain_head(model):
        logits = model(input_ids=token_ids, use_cache=False, **packed).logits[is_wanted]
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    hidden = model.model(input_ids=token_ids, use_cache=False, **packed).last_hidden_state[is_wanted]
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.lm_head.weight.dtype
    return linear_cross_entropy(hidden, model.lm_head.weight, targets, dtype)


def has_plain_head(model: Any) -> bool:
    """The logits are ``hidden @ lm_head.weight.T``."""
    if type(model).__name__.removeprefix("FSDP") not in PLAIN_HEADS:
        return False
    return type(model.lm_head) is torch.nn.Linear and model.lm_head.bias is None


def positions_of(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each token of a packed row stands in its own sample; shape (1, tokens)."""
    return torch.cat([torch.arange(size, device=device) for size in sizes])[None]
