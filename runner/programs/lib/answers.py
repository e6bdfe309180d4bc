"""Greedy answers of a model just trained, and how near they come to the references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from runner.programs.evaluate.metrics import score_answers
from runner.programs.lib.events import Reporter
from runner.programs.lib.marks import Message
from runner.programs.lib.model import Device
from runner.programs.lib.render import Renderer
from runner.programs.lib.tools import CALLS

BATCH_SIZE = 16
SAMPLES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked, as tokens, and the text that it should answer with."""

    token_ids: list[int]
    reference: str


def questions_of(conversations: Sequence[Sequence[Message]], renderer: Renderer, max_tokens: int) -> list[Question]:
    """Conversations that end with an answer, up to that answer; prompts of more than ``max_tokens`` are left out."""
    answered = [messages for messages in conversations if len(messages) > 1 and messages[-1]["role"] == "assistant"]
    answered = [messages for messages in answered if CALLS not in messages[-1]]  # no text to compare with
    questions = [Question(renderer.encode_prompt(messages[:-1]), messages[-1]["content"]) for messages in answered]
    return [question for question in questions if len(question.token_ids) <= max_tokens]


def answer_scores(
    model: Any, renderer: Renderer, questions: Sequence[Question], max_new_tokens: int, device: Device, say: Reporter
) -> dict[str, float]:
    """``eval/rougeL`` (0 to 1), ``eval/bleu`` and ``eval/chrf`` (0 to 100) of greedy answers; {} without questions."""
    if not questions:
        return {}
    device = replace(device, device=model.device)  # a model that was shared out may be too large for the GPU
    say.phase("answers", f"answering {len(questions)} validation samples")
    # The nearer in length, the less padding; the order of the file comes back for the samples that are shown.
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].token_ids))
    answers = [""] * len(questions)
    for batch in _cut(order):
        texts = greedy_answers(model, renderer, [questions[i].token_ids for i in batch], max_new_tokens, device)
        for index, text in zip(batch, texts, strict=True):
            answers[index] = text
    references = [question.reference for question in questions]
    for question, answer in list(zip(questions, answers, strict=True))[:SAMPLES_SHOWN]:
        prompt = renderer.decode(question.token_ids)
        say.sample({"prompt": prompt, "reference": question.reference, "answer": answer})
    # Late: needed only where something is generated.
    from sacrebleu.metrics.chrf import CHRF

    return {
        "eval/rougeL": score_answers("rouge_l", answers, references).value,
        "eval/bleu": score_answers("bleu", answers, references).value,
        "eval/chrf": float(CHRF().corpus_score(answers, [references]).score),
    }


def greedy_answers(
    model: Any, renderer: Renderer, prompts: Sequence[list[int]], max_new_tokens: int, device: Device
) -> list[str]:
    """The text of each answer, up to the first stop token. Leaves the model in evaluation mode."""
    from transformers import GenerationConfig

    make_config: Any = GenerationConfig
    is_encoder = bool(model.config.is_encoder_decoder)
    config = make_config(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=renderer.stop_token_ids,
        pad_token_id=renderer.padding_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None) if is_encoder else None,
    )
    longest = max(map(len, prompts))
    fill = [[renderer.padding_id] * (longest - len(ids)) for ids in prompts]
    mask = [[0] * len(padding) + [1] * len(ids) for padding, ids in zip(fill, prompts, strict=True)]
    rows = [[*padding, *ids] for padding, ids in zip(fill, prompts, strict=True)]
    model.eval()
    with torch.inference_mode(), device.autocast():
        token_ids = model.generate(
            input_ids=torch.tensor(rows, device=device.device),
            attention_mask=torch.tensor(mask, device=device.device),
            generation_config=config,
        ).tolist()
    return [renderer.decode(_until_stop(row[1:] if is_encoder else row[longest:], renderer)) for row in token_ids]


def _until_stop(token_ids: list[int], renderer: Renderer) -> list[int]:
    stop = next((i for i, token in enumerate(token_ids) if token in renderer.stop_token_ids), len(token_ids))
    return token_ids[:stop]


def _cut(order: Sequence[int]) -> Iterator[Sequence[int]]:
    return (order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE))
