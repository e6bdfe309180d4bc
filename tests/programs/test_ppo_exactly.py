"""One update of PPO beside a plain one, sample by sample without padding, straight from the papers.

TRL has no PPO any more. The reference here takes its answers from our run and nothing else: log probabilities from
transformers, advantages as the sums of the paper on generalised advantages (Schulman 2016), rewards less the distance
to the base (Ziegler 2019), the clipped losses of policy and value (Schulman 2017), and torch's own AdamW.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.programs.lib.ppo import Ppo
from runner.programs.train import rl
from tests.programs.proofs import base_model
from tests.programs.recipes import make_context, values_by_step, write_rows

pytestmark = pytest.mark.slow

PROMPTS = [{"prompt": f"Say {word}"} for word in ("a", "eight keys of the piano", "Paris", "nothing", "first", "x")]
KNOBS: dict[str, Any] = {
    "max_steps": 1,
    "save_steps": 1,
    "per_device_train_batch_size": 6,
    "rollout_batch_size": 6,
    "update_epochs": 3,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.01,
    "max_grad_norm": 0.7,
    "logging_steps": 1,
    "precision": "fp32",
    "reward_function": "length",
    "reward_length": 5,
    "max_completion_length": 8,
    "temperature": 0.7,
    "kl_coef": 0.2,
    "kl_target": 0.0,
    "cliprange": 0.1,
    "vf_coef": 0.3,
    "lam": 0.9,
}


class Learner(torch.nn.Module):
    """A policy with a value head; the base stays as it was."""

    def __init__(self, base: Path, head: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.policy, self.base = base_model(base).train(), base_model(base)
        self.head = torch.nn.Linear(64, 1)
        self.head.load_state_dict(head)

    def look(self, prompt: list[int], answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probability of each answer token and the value before it."""
        output = self.policy(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
        before = slice(len(prompt) - 1, -1)
        values = self.head(output.hidden_states[-1][0, before])[:, 0]
        return chosen(output.logits[0, before], answer), values

    def base_log_probs(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.base(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return chosen(logits, answer)


def chosen(logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
    scaled = logits / KNOBS["temperature"]
    return torch.stack([row[token] - torch.logsumexp(row, 0) for row, token in zip(scaled, answer, strict=True)])


def advantages(rewards: list[float], values: list[float]) -> list[float]:
    """A(t) = sum over k of lambda^k (r(t+k) + V(t+k+1) - V(t+k)), undiscounted, nothing after the end."""
    after = [*values[1:], 0.0]
    surprises = [reward + later - value for reward, later, value in zip(rewards, after, values, strict=True)]
    return [sum(KNOBS["lam"] ** k * s for k, s in enumerate(surprises[t:])) for t in range(len(rewards))]


def reference(learner: Learner, pairs: list[tuple[list[int], list[int]]]) -> tuple[list[float], int]:
    """The losses of the passes, and how many tokens they clipped. Changes the learner."""
    old, gains, returns = [], [], []
    for prompt, answer in pairs:
        with torch.no_grad():
            log_probs, values = learner.look(prompt, answer)
        rewards = (-KNOBS["kl_coef"] * (log_probs - learner.base_log_probs(prompt, answer))).tolist()
        rewards[-1] += max(0.0, 1 - abs(len(answer) - KNOBS["reward_length"]) / KNOBS["reward_length"])
        old.append((log_probs, values))
        gains.append(advantages(rewards, values.tolist()))
        returns.append([gain + value for gain, value in zip(gains[-1], values.tolist(), strict=True)])
    flat = torch.tensor([gain for row in gains for gain in row])
    white = [(torch.tensor(row) - flat.mean()) / (flat.var(unbiased=False) + 1e-8).sqrt() for row in gains]
    learned = [*learner.policy.parameters(), *learner.head.parameters()]
    matrices, others = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": KNOBS["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=KNOBS["learning_rate"], betas=(0.9, 0.95))
    losses, num_clipped, clip = [], 0, KNOBS["cliprange"]
    for _ in range(KNOBS["update_epochs"]):
        terms = []
        for (prompt, answer), (log_probs, values), gain, wanted in zip(pairs, old, white, returns, strict=True):
            new_log_probs, new_values = learner.look(prompt, answer)
            for t in range(len(answer)):
                ratio = torch.exp(new_log_probs[t] - log_probs[t])
                limited = min(max(ratio, torch.tensor(1 - clip)), torch.tensor(1 + clip))
                objective = min(ratio * gain[t], limited * gain[t])
                near = min(max(new_values[t], values[t] - clip), values[t] + clip)
                error = max((new_values[t] - wanted[t]) ** 2, (near - wanted[t]) ** 2)
                num_clipped += int(limited != ratio) + int(near != new_values[t])
                terms.append(-objective + KNOBS["vf_coef"] * 0.5 * error)
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in learned if p.grad is not None))
        for parameter in learned:
            if parameter.grad is not None and norm > KNOBS["max_grad_norm"]:
                parameter.grad *= KNOBS["max_grad_norm"] / (norm + 1e-6)
        optimizer.step()
        losses.append(loss.item())
    return losses, num_clipped


def test_an_update_is_that_of_the_papers(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    head: dict[str, torch.Tensor] = {}
    pairs: list[tuple[list[int], list[int]]] = []
    draw, run = Ppo._draw, Ppo.run

    def recorded_draw(self: Ppo, prompts: Any) -> Any:
        token_ids, attention, mask = draw(self, prompts)
        answers = [row[keep].tolist() for row, keep in zip(token_ids[:, -mask.shape[1] :], mask, strict=True)]
        pairs.extend((prompt.token_ids, answer) for prompt, answer in zip(prompts, answers, strict=True))
        return token_ids, attention, mask

    def recorded_run(self: Ppo) -> Any:
        torch.nn.init.normal_(self.value_head.weight, std=0.1)  # zero at the start, which would hide mistakes
        head.update({name: tensor.clone() for name, tensor in self.value_head.state_dict().items()})
        return run(self)

    monkeypatch.setattr(Ppo, "_draw", recorded_draw)
    monkeypatch.setattr(Ppo, "run", recorded_run)
    data = write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    place = {"base_model": str(tiny_model_folder), "method": "full", "train_data": data}
    rl.main(make_context(tmp_path / "run", {**place, "hyperparameters": KNOBS}))

    assert len(pairs) == len(PROMPTS)
    learner = Learner(tiny_model_folder, head)
    losses, num_clipped = reference(learner, pairs)
    assert num_clipped > 5
    assert values_by_step(tmp_path / "run", "train/loss")[1] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    sealed = load_file(tmp_path / "run/checkpoints/step-00000001/weights.safetensors")
    theirs = dict(learner.policy.named_parameters()) | {
        f"value_head.{n}": p for n, p in learner.head.named_parameters()
    }
    compared = {name: tensor for name, tensor in theirs.items() if name in sealed}
    assert len(compared) == len(sealed) - 1  # all but kl_coef
    before = dict(base_model(tiny_model_folder).named_parameters())
    assert max(float((sealed[name] - before[name]).abs().max()) for name in before) > 5e-3
    for name, tensor in compared.items():
        torch.testing.assert_close(sealed[name], tensor.detach(), atol=1e-4, rtol=0, msg=name)
