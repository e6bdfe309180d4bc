"""Batched greedy answers of a causal model and of its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.programs.lib.events import ProgramError
from runner.programs.lib.marks import Message
from runner.programs.lib.render import Renderer

if TYPE_CHECKING:
    from runner.programs.lib.model import Device

#: Rows and tokens (prompt and answer, padding included) that are computed at a time.
MAX_BATCH_ROWS = 32
MAX_BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question as tokens; ``index``: its place in the list of questions."""

    index: int
    token_ids: list[int]


def encode_prompts(
    renderer: Renderer, conversations: Sequence[Sequence[Message]], context_tokens: int, max_new_tokens: int
) -> list[Prompt]:
    """Prompts by the one renderer. Raises ProgramError naming the first question that leaves no room for an answer."""
    prompts = []
    for index, messages in enumerate(conversations):
        token_ids = renderer.encode_prompt(messages)
        if len(token_ids) + max_new_tokens > context_tokens:
            raise ProgramError(
                "question_too_long",
                f"Question {index + 1} has {len(token_ids)} tokens; with max_new_tokens {max_new_tokens} it exceeds "
                f"the model's context of {context_tokens} tokens. Shorten the question or lower max_new_tokens.",
                field="questions",
            )
        prompts.append(Prompt(index, token_ids))
    return prompts


def batches(prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[list[Prompt]]:
    """Prompts of similar length together, the longest first, so that memory runs out at once or never."""
    batch: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda entry: (-len(entry.token_ids), entry.index)):
        row_tokens = (len(batch[0].token_ids) if batch else 0) + max_new_tokens
        if batch and (len(batch) == MAX_BATCH_ROWS or row_tokens * (len(batch) + 1) > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


class Generator:
    """One base model in memory; its adapters are switched on and off without loading the base again."""

    def __init__(self, model_folder: Path, adapters: Sequence[Path], device: Device, max_new_tokens: int) -> None:
        """Raises ProgramError where model or adapter can not be loaded."""
        # Late: torch and transformers take seconds to import, and data errors are reported before.
        import torch
        from transformers import GenerationConfig

        from runner.programs.lib.model import load_causal_model

        self.renderer = Renderer.from_folder(model_folder)
        self._device = device
        base = load_causal_model(model_folder, device.autocast_dtype or torch.float32, device.device)
        # Whatever the model's own file asks for (sampling, penalties) must not leak into a greedy comparison.
        make_config: Any = GenerationConfig
        base.generation_config = make_config()
        self._config = make_config(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.renderer.stop_token_ids,
            pad_token_id=self.renderer.stop_token_ids[0],
        )
        self.context_tokens = int(base.config.max_position_embeddings)
        self._names = {adapter: f"adapter_{number}" for number, adapter in enumerate(adapters)}
        self._model = _with_adapters(base, self._names)

    def answer(self, batch: Sequence[Prompt], adapter: Path | None) -> list[str]:
        """The text of each prompt's answer, up to the first stop token."""
        import torch

        longest = max(len(prompt.token_ids) for prompt in batch)
        padding = [longest - len(prompt.token_ids) for prompt in batch]
        rows = [[self.renderer.stop_token_ids[0]] * n + p.token_ids for n, p in zip(padding, batch, strict=True)]
        mask = [[0] * n + [1] * (longest - n) for n in padding]
        with self._adapter(adapter), torch.inference_mode():
            token_ids = self._model.generate(
                input_ids=torch.tensor(rows, device=self._device.device),
                attention_mask=torch.tensor(mask, device=self._device.device),
                generation_config=self._config,
            )
        return [self._text(row) for row in token_ids[:, longest:].tolist()]

    def _adapter(self, adapter: Path | None) -> AbstractContextManager[Any]:
        if adapter is not None:
            self._model.set_adapter(self._names[adapter])
            return nullcontext()
        context: AbstractContextManager[Any] = self._model.disable_adapter() if self._names else nullcontext()
        return context

    def _text(self, token_ids: list[int]) -> str:
        stop = next((i for i, token in enumerate(token_ids) if token in self.renderer.stop_token_ids), len(token_ids))
        return self.renderer.decode(token_ids[:stop])


def _with_adapters(base: Any, names: dict[Path, str]) -> Any:
    """The base with all adapters loaded beside each other, or the base itself where there are none."""
    from peft import PeftModel

    model = base
    for adapter, name in names.items():
        try:
            if model is base:
                model = PeftModel.from_pretrained(base, str(adapter), adapter_name=name)
            else:
                model.load_adapter(str(adapter), adapter_name=name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ProgramError(
                "adapter_invalid", f"{adapter} does not fit its base model: {error}", "candidates"
            ) from None
    return model.eval()
