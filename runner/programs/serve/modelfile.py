"""The Modelfile of Ollama beside a GGUF file: what to load, how a chat is written, where an answer ends."""

from __future__ import annotations

from runner.programs.lib.marks import Message
from runner.programs.lib.render import Renderer

#: Ollama writes chats by a Go template of its own. Only where it provably gives the model's own text is it written.
CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
_PROBE: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def modelfile_of(renderer: Renderer) -> str:
    """The text of the Modelfile; the model's own Jinja template is in the GGUF file's metadata either way."""
    lines = ["FROM ./model.gguf"]
    if renderer.apply_template(_PROBE) == _as_chatml(_PROBE):
        lines.append(f'TEMPLATE """{CHATML}"""')
    else:
        lines.append("# No TEMPLATE: llama.cpp reads the model's own from the GGUF file (tokenizer.chat_template).")
    lines += [f'PARAMETER stop "{text}"' for text in renderer.stop_texts() if '"' not in text]
    return "\n".join(lines) + "\n"


def _as_chatml(messages: list[Message]) -> str:
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return f"{turns}<|im_start|>assistant\n"
