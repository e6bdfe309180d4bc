"""Well-known base models that a new user may pick by name (S2: preset model library)."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """A model on a hub. ``parameters_billion``: size. ``memory_gib``: of one GPU, for LoRA in bf16."""

    name: str
    huggingface: str
    modelscope: str
    parameters_billion: float
    memory_gib: int
    use_en: str
    use_zh: str


PRESETS = (
    Preset(
        "Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        0.5,
        6,
        "First steps, edge devices",
        "入门、端侧",
    ),
    Preset(
        "Qwen2-7B",
        "Qwen/Qwen2-7B-Instruct",
        "Qwen/Qwen2-7B-Instruct",
        7.6,
        24,
        "General dialogue, strong Chinese",
        "通用对话，中文能力强",
    ),
    Preset(
        "Qwen2-72B", "Qwen/Qwen2-72B-Instruct", "Qwen/Qwen2-72B-Instruct", 72.7, 180, "Complex reasoning", "复杂推理"
    ),
    Preset(
        "LLaMA-3-8B",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "LLM-Research/Meta-Llama-3-8B-Instruct",
        8.0,
        26,
        "English dialogue",
        "英文对话",
    ),
    Preset("ChatGLM3-6B", "THUDM/chatglm3-6b", "ZhipuAI/chatglm3-6b", 6.2, 20, "Chinese dialogue", "中文对话"),
    Preset(
        "Baichuan2-13B",
        "baichuan-inc/Baichuan2-13B-Chat",
        "baichuan-inc/Baichuan2-13B-Chat",
        13.9,
        40,
        "General Chinese",
        "中文通用",
    ),
)


def presets() -> list[dict[str, object]]:
    """All presets as plain data."""
    return [asdict(preset) for preset in PRESETS]
