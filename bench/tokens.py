"""Token statistics: the fast twin beside the tokenizer itself, and whether their ids are the same (bar P10).

`make bench NAME=tokens` prints one JSON line per measure. CPU seconds of one thread; interleaved, ABBA; medians. The
vocabulary is learned here, from the first of the documents.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer

from bench.corpus import documents
from runner.programs.lib.fast_tokens import FastTokens
from runner.programs.lib.render import Renderer
from runner.programs.lib.token_counts import TokenCounter
from runner.programs.lib.tokenizer import train_tokenizer

DOCUMENTS = int(os.environ.get("BENCH_DOCUMENTS", "100000"))
#: Each round counts its own share of the documents both ways.
ROUNDS = 5
VOCABULARY = 32_000


def main() -> None:
    """Learn, count both ways, compare."""
    texts = list(documents(DOCUMENTS))
    with tempfile.TemporaryDirectory() as place:
        train_tokenizer(texts[:20_000], VOCABULARY, 4096, Path(place))
        tokenizer, renderer = Tokenizer.from_file(f"{place}/tokenizer.json"), Renderer.from_folder(place)
    by_ids(tokenizer, texts)
    by_statistics(tokenizer, renderer, texts)


def by_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Token ids of plain texts: the library's call for many texts at once beside the fast twin."""
    tokenizer.encode_special_tokens = True
    fast = FastTokens(tokenizer)
    tokens = 0

    def tell_apart(slow_ids: list[list[int]], fast_ids: list[list[int]]) -> int:
        nonlocal tokens
        tokens += sum(map(len, slow_ids))
        return sum(one != other for one, other in zip(slow_ids, fast_ids, strict=True))

    found = interleaved(
        texts,
        lambda part: [one.ids for one in tokenizer.encode_batch_fast(part, add_special_tokens=False)],
        lambda part: list(map(fast.encode, part)),
        tell_apart,
    )
    tell("tokens", found, tokens, documents=len(texts))
    tokenizer.encode_special_tokens = False


def by_statistics(tokenizer: Tokenizer, renderer: Renderer, texts: list[str]) -> None:
    """What a data set's statistics take: conversations rendered, tokens counted, learned spans found."""
    fast, slow = TokenCounter(renderer, tokenizer), TokenCounter(renderer, tokenizer, is_fast=False)
    pairs = zip(texts[: len(texts) // 5 : 2], texts[1 : len(texts) // 5 : 2], strict=False)
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs
    ]
    tokens = 0

    def tell_apart(slow_counts: list[Any], fast_counts: list[Any]) -> int:
        nonlocal tokens
        tokens += sum(counted.num_tokens for counted in slow_counts)
        return sum(one != other for one, other in zip(slow_counts, fast_counts, strict=True))

    found = interleaved(
        conversations,
        lambda part: list(map(slow.conversation, part)),
        lambda part: list(map(fast.conversation, part)),
        tell_apart,
    )
    tell("token statistics", found, tokens, conversations=len(conversations))


def interleaved(
    items: list[Any], slow: Callable[[Any], Any], fast: Callable[[Any], Any], tell_apart: Callable[[Any, Any], int]
) -> tuple[list[float], list[float], int]:
    """CPU seconds of both ways in each round, ABBA, and how many results differ."""
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    differences = 0
    for number in range(ROUNDS):
        part, results = items[number::ROUNDS], {}
        ways = [("slow", slow), ("fast", fast)]
        for name, way in ways if number % 2 == 0 else reversed(ways):
            gc.collect()
            began = time.process_time()
            results[name] = way(part)
            seconds[name].append(time.process_time() - began)
        differences += tell_apart(results["slow"], results["fast"])
    return seconds["slow"], seconds["fast"], differences


def tell(measure: str, found: tuple[list[float], list[float], int], tokens: int, **counts: int) -> None:
    """One JSON line."""
    slow, fast, differences = found
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    print(json.dumps({
        "measure": measure, **counts, "tokens": tokens, "different": differences,
        "tokenizers_million_tokens_per_cpu_s": round(tokens / sum(slow) / 1e6, 2),
        "fastokens_million_tokens_per_cpu_s": round(tokens / sum(fast) / 1e6, 2),
        "ratio": round(statistics.median(ratios), 2), "ratio_min_max": [round(ratios[0], 2), round(ratios[-1], 2)],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
