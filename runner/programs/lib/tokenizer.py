"""A new byte-level BPE tokenizer in the manner of Qwen2, which every server and llama.cpp know."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from runner.contract.folder import write_json_durably
from runner.programs.lib.render import DEFAULT_TEMPLATE

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

#: How Qwen2 cuts text before BPE; llama.cpp has the same under the name "qwen2".
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_tokens: int, target: Path) -> None:
    """Learn a vocabulary of at most ``vocab_size`` tokens and write the tokenizer package with its ChatML template."""
    tokenizer = blank(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    write_tokenizer(tokenizer, context_tokens, target)


def spell() -> Tokenizer:
    """A tokenizer that has learned nothing: one token for each byte. Making it starts no thread."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = blank(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.add_special_tokens(specials())
    return tokenizer


def specials() -> list[AddedToken]:
    """The tokens that no text becomes."""
    return [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, TURN_START, TURN_END)]


def blank(model: models.Model) -> Tokenizer:
    """A tokenizer around a model of words, which cuts text as Qwen2 does."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, context_tokens: int, target: Path) -> None:
    """Write the tokenizer package with its ChatML template."""
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    write_json_durably(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context_tokens,
            "chat_template": DEFAULT_TEMPLATE,
        },
    )
