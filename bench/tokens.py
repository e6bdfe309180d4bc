"""Token statistics: the fast twin beside the tokenizer itself, and whether their ids are the same (bar P10).

`make bench NAME=tokens` prints one JSON line per measure. CPU seconds of one thread; interleaved, ABBA; medians. The
vocabulary is learned here, from the first of the documents.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer

from bench.corpus import documents
from runner.programs.lib.fast_tokens import FastTokens
from runner.programs.lib.tokenizer import train_tokenizer

DOCUMENTS = int(os.environ.get("BENCH_DOCUMENTS", "100000"))
#: Each round counts its own share of the documents both ways.
ROUNDS = 5
VOCABULARY = 32_000


def cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came of it."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def main() -> None:
    """Learn, count both ways, compare."""
    with tempfile.TemporaryDirectory() as place:
        train_tokenizer(islice(documents(DOCUMENTS), 20_000), VOCABULARY, 4096, Path(place))
        tokenizer = Tokenizer.from_file(f"{place}/tokenizer.json")
    tokenizer.encode_special_tokens = True
    fast, texts = FastTokens(tokenizer), list(documents(DOCUMENTS))

    seconds: dict[str, list[float]] = {"tokenizers": [], "tiktoken": []}
    differences = tokens = 0
    for number in range(ROUNDS):
        part = texts[number::ROUNDS]
        ways: list[tuple[str, Callable[[], list[list[int]]]]] = [
            ("tokenizers", partial(by_tokenizers, tokenizer, part)),
            ("tiktoken", partial(list, map(fast.encode, part))),
        ]
        ids = {}
        for name, way in ways if number % 2 == 0 else reversed(ways):
            took, ids[name] = cpu_s(way)
            seconds[name].append(took)
        pairs = zip(ids["tokenizers"], ids["tiktoken"], strict=True)
        differences += sum(one != other for one, other in pairs)
        tokens += sum(map(len, ids["tokenizers"]))
    rates = {name: tokens / sum(values) / 1e6 for name, values in seconds.items()}
    ratios = sorted(a / b for a, b in zip(seconds["tokenizers"], seconds["tiktoken"], strict=True))
    print(json.dumps({
        "measure": "tokens", "documents": len(texts), "tokens": tokens, "documents_with_other_ids": differences,
        "tokenizers_million_tokens_per_cpu_s": round(rates["tokenizers"], 2),
        "tiktoken_million_tokens_per_cpu_s": round(rates["tiktoken"], 2),
        "ratio": round(statistics.median(ratios), 2), "ratio_min_max": [round(ratios[0], 2), round(ratios[-1], 2)],
    }))  # fmt: skip


def by_tokenizers(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids by the library's fastest call."""
    return [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


if __name__ == "__main__":
    main()
