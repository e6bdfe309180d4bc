"""The part of the table of hyperparameters about new models."""

from __future__ import annotations

from runner.contract.knob_values import Knob

#: The shape of a model that is pretrained from scratch. With a base model these knobs stay unset: its shape counts.
NEW_MODEL_SHAPE: dict[str, int] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 352,
}

PRETRAIN_KNOBS: tuple[Knob, ...] = (
    Knob(
        "vocab_size",
        "int",
        None,
        "Tokens of the new tokenizer (unset: 4096).",
        "新分词器的词表大小 (默认 4096)。",
        320,
        1_000_000,
        unit="tokens",
        recipes=("pretrain",),
    ),
    Knob(
        "hidden_size",
        "int",
        None,
        "Width of the model (unset: 128).",
        "模型隐藏层宽度 (默认 128)。",
        32,
        32_768,
        recipes=("pretrain",),
    ),
    Knob(
        "num_hidden_layers",
        "int",
        None,
        "Depth of the model (unset: 4).",
        "模型层数 (默认 4)。",
        1,
        512,
        recipes=("pretrain",),
    ),
    Knob(
        "num_attention_heads",
        "int",
        None,
        "Attention heads (unset: 4); hidden_size / heads must be 32, 64 or 128.",
        "注意力头数 (默认 4); hidden_size / 头数 须为 32、64 或 128。",
        1,
        1024,
        recipes=("pretrain",),
    ),
    Knob(
        "num_key_value_heads",
        "int",
        None,
        "Heads of keys and values (unset: 2); divides num_attention_heads.",
        "键值头数 (默认 2), 须整除注意力头数。",
        1,
        1024,
        recipes=("pretrain",),
    ),
    Knob(
        "intermediate_size",
        "int",
        None,
        "Width of the feed-forward layers (unset: 352).",
        "前馈层宽度 (默认 352)。",
        32,
        262_144,
        recipes=("pretrain",),
    ),
    Knob(
        "sequence_length",
        "int",
        256,
        "Tokens of one packed training sequence.",
        "单条训练序列的长度。",
        8,
        1_048_576,
        unit="tokens",
        recipes=("pretrain",),
    ),
    Knob(
        "metadata_filter",
        "str",
        "",
        "Only rows whose metadata is so, such as domain=finance, retention!=drop; empty: all.",
        "仅使用 metadata 符合条件的行, 例如 domain=finance, retention!=drop; 空表示全部。",
        recipes=("pretrain",),
    ),
)
