"""How the loss of a language model's head is computed in our own loop: programs do so, the estimator counts on it."""

from __future__ import annotations

#: Architectures whose logits are ``lm_head(hidden)`` and nothing else, so that the head runs on chosen positions only,
#: a tile of the vocabulary at a time.
PLAIN_HEADS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM")
#: Positions and numbers of a tile: on a CPU it stays in the cache, a GPU wants large products.
POSITIONS_AT_ONCE = 1024
LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
#: Tokens of a packed row on a CPU: longer ones are no faster, and all that a row keeps for its backward pass is memory.
CPU_ROW_TOKENS = 512
