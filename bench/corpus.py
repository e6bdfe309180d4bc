"""Texts to measure on, the same in every run: conversations made of words, and what lies on every installation."""

from __future__ import annotations

import json
import random
import site
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20
_CHARACTERS = (
    "退款在哪里申请订单页面点击按钮等待三个工作日到账客服电话营业时间周末休息发票地址物流快递签收质量问题换货保修期限"
)
_WORDS = [
    "refund",
    "order",
    "page",
    "button",
    "account",
    "delivery",
    "invoice",
    "address",
    "support",
    "weekend",
    "warranty",
    "replace",
    "return",
    "payment",
    "card",
    "balance",
    "history",
    "confirm",
    "number",
]
ODD_TEXTS = (
    "🙂👨‍👩‍👧‍👦🇨🇳",
    "<|im_end|>",
    "<|endoftext|>",
    "e\u0301\u0323",
    "\u200b\u202e",
    "한국어",
    "ﬁ½",
    "\t\n\n  x",
)


def write_conversations(path: Path, size_bytes: int) -> int:
    """JSON lines of conversations, half Chinese, half English; how many rows."""
    chance, done, rows = random.Random(7), 0, 0
    with open(path, "wb", buffering=MIB) as stream:
        while done < size_bytes:
            turns = [
                ("system", "You are a helpful assistant."),
                ("user", f"{_text(chance, chance.randrange(20, 200))} {rows}?"),
                ("assistant", f"{_text(chance, chance.randrange(50, 400))}\n- {_text(chance, 30)}"),
            ]
            row = {"messages": [{"role": role, "content": content} for role, content in turns]}
            done += stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            rows += 1
    return rows


def documents(number: int) -> Iterator[str]:
    """So many texts of some hundred characters: code and prose in English, translations into Chinese, odd signs."""
    chance, made = random.Random(7), 0
    while made < number:
        for path in _files():
            text = path.read_text(encoding="utf-8", errors="replace")
            start = 0
            while start < len(text) and made < number:
                end = start + chance.randrange(200, 1500)
                piece = text[start:end]
                if chance.random() < 0.2:
                    at = chance.randrange(len(piece) + 1)
                    piece = piece[:at] + chance.choice(ODD_TEXTS) + piece[at:]
                yield piece
                start, made = end, made + 1


def _files() -> list[Path]:
    """Chinese catalogues and Python sources of the installed packages, mixed."""
    root = Path(site.getsitepackages()[0])
    patterns = ("*/locale/zh_Hans/LC_MESSAGES/*.po", "django/**/locale/zh_Hans/LC_MESSAGES/*.po")
    chinese = sorted({path for pattern in patterns for path in root.glob(pattern)})
    sources = sorted(root.glob("django/**/*.py"))[: 4 * len(chinese)]
    return [path for number, path in enumerate(sources) for path in (path, *chinese[number : number + 1])]


def _text(chance: random.Random, size: int) -> str:
    if chance.random() < 0.5:
        return "".join(chance.choice(_CHARACTERS) for _ in range(size))
    return " ".join(chance.choice(_WORDS) for _ in range(size // 2))
