"""An evaluation of one's own: perplexity on the test texts, written as metrics.json into the output folder."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_dir, input_dir, output_dir = map(Path, sys.argv[1:4])
tokenizer = AutoTokenizer.from_pretrained(model_dir)
model = AutoModelForCausalLM.from_pretrained(model_dir)
losses = []
for file in sorted((input_dir / "test").glob("*.jsonl")):
    for line in file.read_text(encoding="utf-8").splitlines():
        ids = tokenizer(json.loads(line)["text"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses.append(model(ids, labels=ids).loss.item())
mean = sum(losses) / len(losses)
(output_dir / "metrics.json").write_text(json.dumps({"loss": mean, "perplexity": math.exp(mean), "texts": len(losses)}))
