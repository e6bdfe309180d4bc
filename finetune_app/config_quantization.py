"""What a YAML training configuration says of a quantized base, in its several words."""

from __future__ import annotations

from typing import Any

from clavier.core.errors import quoted
from finetune_app.config_keys import ConfigKeys

USUAL_BITS = 4


def take_method(keys: ConfigKeys, method: str, task_type: str) -> str:
    """The method after what the file says of adapters and quantization; ``method``: what its paradigm means."""
    asked, denied = _take_bits(keys)
    has_adapter = keys.take_flag("peft")
    adapters = ([keys.written["peft"]] if has_adapter else []) + list(asked)
    if "method" in keys.left:
        method = str(keys.left.pop("method"))
        adapters += ["task_type lora"] if task_type == "lora" else []
        if method == "full" and adapters:
            keys.contradict("method", f"method full trains all weights, and {adapters[0]} asks for an adapter")
    if asked:
        method = "qlora"
        key, bits = next(iter(asked.items()))
        keys.written.setdefault("method", key)
        keys.written.setdefault("quantization_bits", key)
        keys.left.setdefault("quantization_bits", bits)
    elif has_adapter and method == "full":
        method = "lora"
    if method == "qlora":
        _compare(keys, asked, denied)
    if has_adapter is False and method != "full":
        what = next(iter(adapters), f"method {method}")
        keys.contradict(keys.written["peft"], f"{keys.written['peft']} is false, and {what} asks for an adapter")
    return method


def _take_bits(keys: ConfigKeys) -> tuple[dict[str, Any], dict[str, int | None]]:
    """Key -> the bits that it asks for; key -> the bits that it wants not, None: any."""
    asked: dict[str, Any] = {}
    denied: dict[str, int | None] = {}
    for name, bits in (("use_8bit", 8), ("use_4bit", 4)):
        flag = keys.take_flag(name)
        if flag is not None:
            (asked if flag else denied)[keys.written[name]] = bits
    block = keys.take_block("quantization", ("enabled", "bits", "method"))
    kind = block.get("method", "qlora")
    if not isinstance(kind, str) or kind.lower() != "qlora":
        message = f"quantization.method {quoted(kind)} is none of qlora; the base is frozen, and an adapter learns"
        keys.add("quantization.method", "not_a_choice", message)
    is_on = keys.is_on("quantization", block)
    if is_on:
        asked["quantization.bits"] = block.get("bits", USUAL_BITS)
    elif is_on is False:
        denied["quantization.enabled"] = None
    return asked, denied


def _compare(keys: ConfigKeys, asked: dict[str, Any], denied: dict[str, int | None]) -> None:
    """A base has 4 bits or 8, and what says so says the same."""
    bits = keys.left.get("quantization_bits", USUAL_BITS)
    own = keys.written.get("quantization_bits", "method qlora")
    asked = {**asked, own: bits} if own not in asked else asked
    if len({str(each) for each in asked.values()}) > 1:
        told = " and ".join(f"{key} {quoted(each)}" for key, each in asked.items())
        keys.contradict(next(iter(asked)), f"a base has 4 or 8 bits: {told}; ask for one of them")
    for key, unwanted in denied.items():
        if unwanted is None or str(unwanted) == str(bits):
            keys.contradict(key, f"{key} is false, and {next(iter(asked))} asks for {quoted(bits)} bits")
