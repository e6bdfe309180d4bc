"""When a training measures its validation loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contract.contradictions import COMPARING
from runner.programs.lib.events import Reporter


def evaluation_interval(say: Reporter, knobs: Mapping[str, Any], steps_per_epoch: int, total_steps: int) -> int:
    """Steps between two evaluations; 0: only at the end. What compares evaluations has one after each epoch.

    Warns where a knob compares and a single evaluation is all that there is.
    """
    comparing = [name for name in COMPARING if knobs[name]]
    interval = int(knobs["eval_steps"]) or (steps_per_epoch if comparing else 0)
    if comparing and interval >= total_steps:
        message = f"{' and '.join(comparing)}: there is one evaluation only, after the last of {total_steps} steps"
        say.warning(f"{message}; give a smaller eval_steps", "not_used")
    return interval
