"""A training script of one's own: tunes a causal language model on {"text": ...} lines, with LoRA or in full.

It exposes every key of config/LoRA/config.json as a flag of the same name; the platform appends the values. What it
prints in the Hugging Face manner ({'loss': ..., 'epoch': ...}) becomes the platform's charts.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("--model_dir", type=Path, required=True)
parser.add_argument("--input_dir", type=Path, required=True)
parser.add_argument("--output_dir", type=Path, required=True)
parser.add_argument("--checkpoint_dir", type=Path, required=True)
parser.add_argument("--learning_rate", type=float, default=1e-4)
parser.add_argument("--per_device_train_batch_size", type=int, default=1)
parser.add_argument("--num_train_epochs", type=int, default=1)
parser.add_argument("--save_strategy", choices=["no", "steps", "epoch"], default="no")
parser.add_argument("--save_steps", type=int, default=200)
parser.add_argument("--lora_r", type=int, default=0, help="0: tune all weights")
parser.add_argument("--lora_alpha", type=float, default=16.0)
parser.add_argument("--lora_dropout", type=float, default=0.0)
args = parser.parse_args()


def read(split: str) -> list[str]:
    """The texts of one of the folders train, validate and test."""
    files = sorted((args.input_dir / split).glob("*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def loss_of(texts: list[str]) -> torch.Tensor:
    """The mean loss over the tokens of some texts."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return model(**batch, labels=labels).loss


def validation_loss() -> float:
    """The mean loss over the validation texts."""
    model.eval()
    with torch.no_grad():
        losses = [loss_of([text]).item() for text in read("validate")]
    model.train()
    return sum(losses) / len(losses)


torch.manual_seed(0)
random.seed(0)
tokenizer = AutoTokenizer.from_pretrained(args.model_dir)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(args.model_dir)
if args.lora_r:
    config = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)

texts, size = read("train"), args.per_device_train_batch_size
steps_per_epoch = -(-len(texts) // size)
total_steps = steps_per_epoch * args.num_train_epochs
step = 0
model.train()
bar = tqdm(total=total_steps)
for epoch in range(args.num_train_epochs):
    random.shuffle(texts)
    for start in range(0, len(texts), size):
        loss = loss_of(texts[start : start + size])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        tqdm.write(str({"loss": round(loss.item(), 4), "epoch": round(step / steps_per_epoch, 2), "step": step}))
        if args.save_strategy == "steps" and step % args.save_steps == 0:
            model.save_pretrained(args.checkpoint_dir / f"checkpoint-{step}")
    tqdm.write(str({"eval_loss": round(validation_loss(), 4), "epoch": epoch + 1, "step": step}))
    if args.save_strategy == "epoch":
        model.save_pretrained(args.checkpoint_dir / f"checkpoint-{step}")
bar.close()
model.save_pretrained(args.output_dir / "model")
tokenizer.save_pretrained(args.output_dir / "model")
