"""Reward models: one number for a conversation, read where the last reply ends, as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runner.programs.lib.data import Message
from runner.programs.lib.events import ProgramError
from runner.programs.lib.model import Device, architecture_of, load_classifier
from runner.programs.lib.preferences import encode_replies
from runner.programs.lib.render import Renderer


class RewardModel:
    """A version of the recipe ``reward``: a model of its own, or a base with the adapter that makes it one."""

    def __init__(self, folder: Path, adapter: Path | str | None, device: Device) -> None:
        """Raises ProgramError for a model that gives no score, or has none without its adapter."""
        if adapter is None:  # a causal model would get a new, random head, and its scores would mean nothing
            architecture_of(folder, "ForSequenceClassification")
        self._device = device
        self._model = load_classifier(folder, device.autocast_dtype or torch.float32, device.device, ["reward"])
        self.renderer = Renderer.from_folder(adapter or folder)
        self._model.config.pad_token_id = self.renderer.padding_id
        if adapter is not None:
            self._model = _with_adapter(self._model, adapter)

    def encode(self, messages: Sequence[Message], where: str) -> list[int]:
        """The tokens of a conversation up to the end of its last reply. Raises ProgramError naming ``where``."""
        prompt, (reply,) = encode_replies(self.renderer, messages[:-1], [messages[-1]], where)
        return [*prompt, *reply]

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The score of each row of tokens, computed in one pass (padded at the right)."""
        longest = max(map(len, rows))
        token_ids = torch.full((len(rows), longest), self.renderer.padding_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            token_ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        token_ids, mask = token_ids.to(self._device.device), mask.to(self._device.device)
        with torch.inference_mode(), self._device.autocast():
            logits = self._model(input_ids=token_ids, attention_mask=mask).logits
        return [float(score) for score in logits[:, 0].float().tolist()]


def _with_adapter(model: Any, adapter: Path | str) -> Any:
    # Late: the library takes seconds to import.
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ProgramError("model_invalid", f"the reward model can not be loaded: {error}", "reward_model") from None
