"""What the bar compares with: a training script as one writes it by hand, run as ``python fresh_train.py MODEL DATA``.

PyTorch, transformers and PEFT and nothing else; one step of LoRA on the whole of a small file, then one JSON line.
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, data_file = sys.argv[1:]
torch.manual_seed(42)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
model = get_peft_model(
    model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
)

samples = []
with open(data_file, encoding="utf-8") as stream:
    for line in stream:
        row = json.loads(line)
        prompt = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(f"{row['answer']}<|im_end|>", add_special_tokens=False)["input_ids"]
        samples.append((prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids))
length = max(len(ids) for ids, _ in samples)
input_ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in samples])
labels = torch.tensor([known + [-100] * (length - len(known)) for _, known in samples])

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
loss = model(input_ids=input_ids, attention_mask=(labels != -100) | (input_ids != 0), labels=labels).loss
loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print(json.dumps({"at": time.time(), "cpu_s": time.process_time(), "loss": float(loss)}), flush=True)
