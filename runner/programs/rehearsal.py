"""One step of a tiny training, so that a process which is forked later has everything filled that fills on first use.

Compiled expressions, caches of types, bytecode that the interpreter has adapted: about a sixth of what a first step
takes. Model and data are made of nothing; no file and no random number is left of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from runner.contract import folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib.events import ProgramContext, Reporter
from runner.programs.lib.model import quiet_transformers
from runner.programs.lib.tokenizer import spell, write_tokenizer
from runner.programs.lib.train_state import random_states, restore_random_states
from runner.programs.train import sft

#: Where these are, computing could open a device that forks can not use.
DEVICES = ("/dev/nvidiactl", "/dev/kfd")
ROWS = ({"question": "How many?", "answer": "Two."}, {"question": "And then?", "answer": "Three of them."})
KNOBS = {"max_steps": 2, "per_device_train_batch_size": 2, "precision": "fp32", "max_seq_length": 128, "lora_r": 4}


def rehearse() -> bool:
    """Train for two steps and forget it; whether that went well. Without it everything works, only later."""
    if any(map(os.path.exists, DEVICES)):
        return False
    environment, drawn = dict(os.environ), random_states()
    try:
        with (
            tempfile.TemporaryDirectory() as place,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            train_in(Path(place))
        return True
    except Exception:  # whoever forks this process later does all of it himself
        traceback.print_exc()
        return False
    finally:
        restore_random_states(drawn)
        os.environ.clear()
        os.environ.update(environment)


def train_in(place: Path) -> None:
    """Write a model and rows into a folder and tune it there."""
    write_model(place / "model")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run_folder = place / "run"
    (run_folder / folder.WORK).mkdir(parents=True)
    parameters = {
        "base_model": str(place / "model"), "method": "lora", "hyperparameters": KNOBS,
        "train_data": str(place / "rows.jsonl"), "validation_data": None,
    }  # fmt: skip
    spec = RunSpec("fine_tune", "runner.programs.train.sft", parameters)
    with contextlib.closing(Reporter(run_folder)) as report:
        sft.main(ProgramContext(run_folder, spec, report))


def write_model(target: Path) -> None:
    """A Qwen2 of one layer that spells its words."""
    # Late: the library takes seconds to import.
    from transformers import Qwen2Config, Qwen2ForCausalLM

    quiet_transformers()
    tokenizer = spell()
    write_tokenizer(tokenizer, 256, target)
    config: Any = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
    Qwen2ForCausalLM(config).save_pretrained(target)
