"""Tokenized samples on disk, mapped and not loaded: a program that starts again does not tokenize again.

The cache lies in the run's own folder, so it is the tenant's, goes with the run, and holds a few entries at the most.
An entry's name is a hash over everything that its tokens follow from: data, tokenizer, template, lengths.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from runner.contract.folder import write_json_durably
from runner.programs.lib.artifacts import hash_file
from runner.programs.lib.batches import Sample
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.render import Renderer

#: Entries of one run: training and validation data, and as many of an earlier start with other settings.
MAX_ENTRIES = 4
#: Rises when the files below, or how samples are made of conversations, change.
FORMAT = 1
META, TOKENS, LABELS, INDEX = "meta.json", "tokens.bin", "labels.bin", "index.bin"


class TokenCache:
    """The entries below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, data: Path, renderer: Renderer, lengths: LengthPolicy) -> str:
        """The name of an entry. ``renderer.render_hash`` covers template, special tokens and tokenizer."""
        parts = [FORMAT, hash_file(data), data.name, renderer.render_hash, lengths.max_tokens, lengths.policy]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load(self, key: str, lengths: LengthPolicy) -> list[Sample] | None:
        """The samples of a whole entry, and in ``lengths`` what long ones lost; None where there is none."""
        folder = self._folder / key
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        num_tokens, num_samples = int(meta["num_tokens"]), int(meta["num_samples"])
        tokens = torch.from_file(str(folder / TOKENS), shared=False, size=num_tokens, dtype=torch.int32)
        labels = torch.from_file(str(folder / LABELS), shared=False, size=num_tokens, dtype=torch.bool)
        index = torch.from_file(str(folder / INDEX), shared=False, size=2 * num_samples, dtype=torch.int64)
        lengths.counts = meta["lengths"]
        samples, start = [], 0
        for line, size in index.view(-1, 2).tolist():
            part = slice(start, start + size)
            samples.append(Sample(f"{meta['source']} line {line}", tokens[part], labels[part]))
            start += size
        return samples

    def store(self, key: str, source: str, samples: Sequence[Sample], lengths: LengthPolicy) -> None:
        """Write an entry whole or not at all, and remove the oldest ones beyond the limit."""
        temporary = self._folder / f".tmp-{key}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)  # an earlier start's, which may have had this process id
        temporary.mkdir(parents=True)
        _write(temporary / TOKENS, [sample.token_ids for sample in samples])
        _write(temporary / LABELS, [sample.is_label for sample in samples])
        lines = [[int(sample.row.rsplit(" ", 1)[1]), len(sample.token_ids)] for sample in samples]
        _write(temporary / INDEX, [torch.tensor(lines, dtype=torch.int64)])
        num_tokens = sum(len(sample.token_ids) for sample in samples)
        meta = {"source": source, "num_samples": len(samples), "num_tokens": num_tokens, "lengths": lengths.counts}
        write_json_durably(temporary / META, meta)
        shutil.rmtree(self._folder / key, ignore_errors=True)
        os.rename(temporary, self._folder / key)
        entries = sorted(self._folder.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
        for old in entries[:-MAX_ENTRIES]:
            shutil.rmtree(old)


def _write(path: Path, tensors: Sequence[torch.Tensor]) -> None:
    with open(path, "wb") as stream:
        for tensor in tensors:
            stream.write(tensor.contiguous().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
