"""Compares models on a list of questions: ``python -m runner.programs.evaluate.questions RUN_FOLDER``.

Parameters: ``candidates`` [{``label``, ``model`` folder, ``adapter`` folder or null}], ``questions`` (JSONL in any
shape that ``lib.data`` reads; the last assistant turn is the reference), ``metrics`` (see ``metrics``), ``decoding``
{``max_new_tokens``}, ``limit`` (first n questions, or null). Decoding is greedy.
Writes ``output/samples.jsonl``, ``output/scores.json`` and a manifest of kind ``evaluation``. The run fails unless
every metric has a value over all samples.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contract.folder import write_json_durably
from runner.programs.evaluate.generation import Generator, batches, encode_prompts
from runner.programs.evaluate.metrics import METRICS, METRICS_VERSION, Score, score_answers
from runner.programs.lib.artifacts import hash_file, write_manifest
from runner.programs.lib.data import Message, read_messages
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter, Stopped, require, run_program
from runner.programs.lib.render import Renderer

DEFAULT_MAX_NEW_TOKENS = 64
MAX_SHOWN_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One side of the comparison."""

    label: str
    model: Path
    adapter: Path | None


@dataclass(frozen=True, slots=True)
class Question:
    """``prompt``: the conversation before its last answer; ``reference``: that answer."""

    prompt: list[Message]
    reference: str

    @property
    def text(self) -> str:
        """What the user asked last."""
        return next((m["content"] for m in reversed(self.prompt) if m["role"] == "user"), "")


@dataclass(frozen=True, slots=True)
class Plan:
    """The checked parameters."""

    candidates: list[Candidate]
    questions: list[Question]
    metrics: list[str]
    max_new_tokens: int
    fingerprint: str

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Plan:
        """Raises ProgramError naming the parameter that is missing or wrong."""
        path, limit = Path(require(parameters, "questions")), parameters.get("limit")
        max_new_tokens = (parameters.get("decoding") or {}).get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        for name, number in (("limit", limit), ("max_new_tokens", max_new_tokens)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ProgramError(f"{name}_invalid", f"{name} is {number!r}; a whole number from 1 is needed.", name)
        questions = _read_questions(path, limit)
        return cls(
            candidates=_candidates(require(parameters, "candidates")),
            questions=questions,
            metrics=_metrics(require(parameters, "metrics")),
            max_new_tokens=max_new_tokens,
            fingerprint=_fingerprint(path, len(questions), max_new_tokens),
        )


def main(context: ProgramContext) -> None:
    """Answer every question with every candidate, score, and write the comparison."""
    plan = Plan.from_parameters(context.parameters)
    context.report.phase("data", f"{len(plan.questions)} questions, {len(plan.candidates)} candidates")
    answers = _answer_all(context, plan)
    context.report.phase("score", f"scoring {', '.join(plan.metrics)}")
    references = [question.reference for question in plan.questions]
    scores = {
        label: {metric: score_answers(metric, texts, references) for metric in plan.metrics}
        for label, texts in answers.items()
    }
    _write_samples(context, plan, answers, scores)
    values = _write_scores(context, plan, scores)
    facts = {"num_samples": len(plan.questions), "fingerprint": plan.fingerprint}
    write_manifest(context.output, "evaluation", facts, values)
    context.report.artifact("output/scores.json", "scores", (context.output / "scores.json").stat().st_size)
    context.report.summary(values)


def _candidates(value: Any) -> list[Candidate]:
    candidates = []
    for entry in value:
        model = Path(require(entry, "model"))
        adapter = Path(entry["adapter"]) if entry.get("adapter") else None
        for folder, file in ((model, "config.json"), (adapter, "adapter_config.json")):
            if folder is not None and not (folder / file).is_file():
                raise ProgramError("model_missing", f"{folder} holds no {file}.", field="candidates")
        candidates.append(Candidate(str(require(entry, "label")), model, adapter))
    labels = [candidate.label for candidate in candidates]
    if not labels or len(set(labels)) != len(labels):
        raise ProgramError("candidates_invalid", f"candidates need different labels, got {labels}.", field="candidates")
    return candidates


def _metrics(value: Any) -> list[str]:
    unknown = [name for name in value if name not in METRICS]
    if unknown or not value:
        raise ProgramError("metric_unknown", f"metrics are {value}; allowed are {', '.join(METRICS)}.", field="metrics")
    return list(dict.fromkeys(value))


def _read_questions(path: Path, limit: int | None) -> list[Question]:
    questions = []
    for line_number, messages in itertools.islice(read_messages(path), limit):
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ProgramError(
                "reference_missing",
                f"{path.name} line {line_number} does not end with an answer of the assistant: that is the reference.",
                field="questions",
            )
        questions.append(Question(messages[:-1], messages[-1]["content"]))
    if not questions:
        raise ProgramError("questions_empty", f"{path.name} holds no question.", field="questions")
    return questions


def _fingerprint(path: Path, num_questions: int, max_new_tokens: int) -> str:
    """sha256 over what makes scores comparable: data, decoding and the definition of the metrics."""
    facts = {
        "questions": hash_file(path),
        "num_questions": num_questions,
        "decoding": {"strategy": "greedy", "max_new_tokens": max_new_tokens},
        "metrics_version": METRICS_VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _answer_all(context: ProgramContext, plan: Plan) -> dict[str, list[str]]:
    """The answers of each candidate in the order of the questions; each base model is loaded once."""
    # Late: torch takes a second to import, and wrong parameters are reported before.
    from runner.programs.lib.model import choose_device

    device = choose_device("auto")
    context.report.phase("device", device.name)
    progress = _Progress(context.report, total=len(plan.questions) * len(plan.candidates))
    answers: dict[str, list[str]] = {}
    for model in dict.fromkeys(candidate.model for candidate in plan.candidates):
        group = [candidate for candidate in plan.candidates if candidate.model == model]
        adapters = list(dict.fromkeys(candidate.adapter for candidate in group if candidate.adapter))
        generator = Generator(model, adapters, device, plan.max_new_tokens)
        _warn_of_other_rendering(context.report, generator.renderer, adapters)
        prompts = encode_prompts(
            generator.renderer, [q.prompt for q in plan.questions], generator.context_tokens, plan.max_new_tokens
        )
        for candidate in group:
            context.report.phase("generate", f"answers of {candidate.label}")
            texts = [""] * len(prompts)
            for batch in batches(prompts, plan.max_new_tokens):
                if context.should_stop:
                    raise Stopped(f"stopped after {progress.done} of {progress.total} answers")
                for prompt, text in zip(batch, generator.answer(batch, candidate.adapter), strict=True):
                    texts[prompt.index] = text
                progress.advance(len(batch))
            answers[candidate.label] = texts
    return {candidate.label: answers[candidate.label] for candidate in plan.candidates}


class _Progress:
    """Counts answers and reports them with the speed so far."""

    def __init__(self, report: Reporter, total: int) -> None:
        self._report = report
        self._started = time.monotonic()
        self.total = total
        self.done = 0

    def advance(self, count: int) -> None:
        self.done += count
        per_second = self.done / max(time.monotonic() - self._started, 1e-6)
        self._report.progress(self.done, self.total)
        self._report.metric(self.done, self.total, 0.0, {"eval/answers_per_second": round(per_second, 2)})


def _warn_of_other_rendering(report: Reporter, renderer: Renderer, adapters: Sequence[Path]) -> None:
    for adapter in adapters:
        has_tokenizer = (adapter / "tokenizer.json").is_file()
        if has_tokenizer and Renderer.from_folder(adapter).render_hash != renderer.render_hash:
            report.warning(
                f"The adapter {adapter.name} brings another tokenizer or template than its base model; "
                "the base model's is used.",
                code="render_differs",
            )


def _write_samples(
    context: ProgramContext, plan: Plan, answers: dict[str, list[str]], scores: dict[str, dict[str, Score]]
) -> None:
    with open(context.output / "samples.jsonl", "w", encoding="utf-8") as stream:
        for index, question in enumerate(plan.questions):
            sample = {
                "index": index,
                "question": question.text,
                "reference": question.reference,
                "answers": {
                    label: {"text": texts[index], **{m: score.per_sample[index] for m, score in scores[label].items()}}
                    for label, texts in answers.items()
                },
            }
            stream.write(json.dumps(sample, ensure_ascii=False) + "\n")
            if index < MAX_SHOWN_SAMPLES:
                context.report.sample(sample)


def _write_scores(context: ProgramContext, plan: Plan, scores: dict[str, dict[str, Score]]) -> dict[str, float]:
    """Write scores.json; returns the values under ``label/metric``."""
    value = {
        "num_samples": len(plan.questions),
        "scores": {label: {m: s.value for m, s in by_metric.items()} for label, by_metric in scores.items()},
        "intervals": {
            label: {m: list(s.interval) for m, s in by_metric.items()} for label, by_metric in scores.items()
        },
        "render_hashes": {c.label: Renderer.from_folder(c.model).render_hash for c in plan.candidates},
        "fingerprint": plan.fingerprint,
    }
    write_json_durably(context.output / "scores.json", value)
    return {f"{label}/{m}": score.value for label, by_metric in scores.items() for m, score in by_metric.items()}


if __name__ == "__main__":
    run_program(main)
