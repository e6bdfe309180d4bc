"""Makes a version stand alone: ``python -m runner.programs.models.export_model RUN_FOLDER``.

Parameters: ``model`` (folder of the full model), ``adapter`` (folder to merge into it, or null), ``form``: ``merged``
(safetensors, as any tool loads them) or ``gguf`` (one file for llama.cpp and Ollama, with a Modelfile), and for GGUF
``precision`` (f32, f16, bf16, or null: by size). Writes ``output/model/`` and a manifest of kind ``model``.

Merging is gated: on probe prompts the merged weights, read back from disk, must give the adapter's next-token
distributions and its greedy words. A gate that fails is a failed run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.programs.lib.artifacts import model_facts, write_manifest
from runner.programs.lib.events import ProgramContext, ProgramError, require, run_program
from runner.programs.lib.model import load_causal_model, quiet_transformers
from runner.programs.lib.render import Renderer
from runner.programs.serve.gguf_writer import write_model_gguf
from runner.programs.serve.modelfile import modelfile_of

FORMS = ("merged", "gguf")
#: Largest accepted Kullback-Leibler divergence in nats between the next-token distributions, mean over all places.
MAX_DIVERGENCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
#: Share of places at which both choose the same next token.
MIN_AGREEMENT = 0.99
PROBES = (
    "What is the capital of France?",
    "用一句话介绍你自己。",
    "Write a Python function that adds two numbers.",
    "List three colours.",
    "1, 2, 3,",
    "请把这句话翻译成英文: 今天天气很好。",
)


@dataclass(frozen=True, slots=True)
class Gate:
    """How close the merged weights are to base and adapter."""

    divergence: float
    agreement: float
    largest_logit_difference: float

    def as_json(self) -> dict[str, float]:
        """What the version keeps as metrics."""
        return {
            "merge/kl_divergence": self.divergence,
            "merge/greedy_agreement": self.agreement,
            "merge/max_logit_difference": self.largest_logit_difference,
        }


def main(context: ProgramContext) -> None:
    """Merge where there is an adapter, convert where GGUF is wanted, describe."""
    quiet_transformers()
    form = str(require(context.parameters, "form"))
    if form not in FORMS:
        raise ProgramError("form_unknown", f"form is {form!r}; allowed are {', '.join(FORMS)}.", "form")
    base = Path(str(require(context.parameters, "model")))
    adapter = Path(context.parameters["adapter"]) if context.parameters.get("adapter") else None
    metrics: dict[str, float] = {}
    whole = base
    if adapter is not None:
        whole = context.output / "model" if form == "merged" else context.run_folder / "work" / "merged"
        metrics = merge(context, base, adapter, whole).as_json()
    elif form == "merged":
        raise ProgramError("nothing_to_merge", "The version is a full model already: there is no adapter to merge.")
    facts = model_facts(whole) if form == "merged" else write_gguf(context, whole)
    manifest = write_manifest(context.output, "model", facts, metrics)
    size_bytes = sum(entry["size"] for entry in manifest["files"])
    context.report.artifact("output/model", "gguf" if form == "gguf" else "full_model", size_bytes)
    context.report.summary({"size_bytes": size_bytes, **metrics})


def merge(context: ProgramContext, base: Path, adapter: Path, target: Path) -> Gate:
    """Write base plus adapter as full weights and compare them with what they came from. Raises ProgramError."""
    from peft import PeftModel

    dtype = _stored_dtype(base)
    renderer = Renderer.from_folder(adapter)
    probes = [torch.tensor(renderer.encode_prompt([{"role": "user", "content": text}])) for text in PROBES]
    context.report.phase("load", f"loading {base.name} and its adapter")
    tuned = PeftModel.from_pretrained(load_causal_model(base, dtype, torch.device("cpu")), str(adapter)).eval()
    expected = logits_of(tuned, probes)
    context.report.phase("merge", "merging the adapter into the weights")
    merged: Any = tuned.merge_and_unload(safe_merge=True)
    target.mkdir(parents=True, exist_ok=True)
    merged.save_pretrained(target)
    renderer.save(adapter, target)
    del merged, tuned
    context.report.phase("compare", "comparing the merged weights with base and adapter")
    gate = compare(expected, logits_of(load_causal_model(target, dtype, torch.device("cpu")).eval(), probes))
    limit = MAX_DIVERGENCE[dtype]
    if not (gate.divergence <= limit and gate.agreement >= MIN_AGREEMENT):
        raise ProgramError(
            "merge_differs",
            f"The merged weights answer differently: KL divergence {gate.divergence:.3g} (at most {limit:g}), the same "
            f"next token at {gate.agreement:.1%} of the places (at least {MIN_AGREEMENT:.0%}). Serve the adapter on "
            "its base instead, or merge into a base of higher precision.",
        )
    return gate


def logits_of(model: Any, probes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Logits in 32 bits at every place of each probe: tensors of shape (tokens, vocabulary)."""
    with torch.inference_mode():
        return [model(probe.unsqueeze(0)).logits[0].float() for probe in probes]


def compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Gate:
    """The distance between two models' logits on the same probes."""
    divergence, same, places, largest = 0.0, 0, 0, 0.0
    for one, other in zip(expected, found, strict=True):
        log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
        divergence += float((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0).sum())
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
        largest = max(largest, float((one - other).abs().max()))
        places += one.shape[0]
    return Gate(divergence / places, same / places, largest)


def write_gguf(context: ProgramContext, whole: Path) -> dict[str, Any]:
    """One GGUF file with its Modelfile; the facts of the version. Raises ProgramError."""
    target = context.output / "model"
    target.mkdir(parents=True, exist_ok=True)
    context.report.phase("convert", "writing GGUF")
    written = write_model_gguf(
        whole,
        target / "model.gguf",
        precision=context.parameters.get("precision"),
        on_tensor=lambda done, total: context.report.progress(done, total),
    )
    (target / "Modelfile").write_text(modelfile_of(Renderer.from_folder(whole)), encoding="utf-8")
    facts = model_facts(whole)
    shutil.rmtree(context.run_folder / "work" / "merged", ignore_errors=True)
    return {**facts, "format": "gguf", "precision": written.precision, "num_parameters": written.num_parameters}


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type in which the base is stored: merging in another one would change more than the adapter does."""
    names = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return names.get(str(model_facts(folder)["dtype"]), torch.float32)


if __name__ == "__main__":
    run_program(main)
