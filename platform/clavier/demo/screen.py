"""What a person sees of the demo: a live line while it works, a table at the end."""

from __future__ import annotations

import sys
import textwrap
from typing import Any, TextIO

from clavier.demo.story import Step

WIDTH = 24


class Screen:
    """Live progress on a terminal, one line a step elsewhere."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._last = ""

    def report(self, step: str, status: dict[str, Any]) -> None:
        """Show where a step is."""
        line = f"{step} … {progress_words(status)}".rstrip()
        if self._is_terminal:
            self._out.write(f"\r\033[K{line}")
        elif step != self._last:
            self._out.write(f"{step} …\n")
        self._last = step
        self._out.flush()

    def clear(self) -> None:
        """Remove the live line."""
        if self._is_terminal:
            self._out.write("\r\033[K")


def progress_words(status: dict[str, Any]) -> str:
    """State, bar and time left of a run's status."""
    if not status:
        return ""
    found = status.get("progress") or {}
    progress = found.get("progress") or {}
    total = progress.get("total_steps") or 0
    if not total:
        return str(status.get("why") or (found.get("phase") or {}).get("message") or status.get("state") or "")
    share = min(1.0, progress["step"] / total)
    bar = "█" * round(share * WIDTH) + "·" * (WIDTH - round(share * WIDTH))
    left = progress.get("eta_s")
    return f"{bar} {progress['step']}/{total}" + (f", {left:.0f} s left" if left is not None else "")


def table(steps: list[Step], facts: dict[str, Any], portal: str) -> str:
    """Steps with seconds and results, the answers, the portal's address."""
    width = max(len(step.name) for step in steps)
    lines = ["", f"{'step':{width}}  seconds  result", f"{'-' * width}  -------  {'-' * 40}"]
    lines += [f"{step.name:{width}}  {step.seconds:7.1f}  {step.result}" for step in steps]
    for number, asked in enumerate(facts.get("questions", []), 1):
        lines += ["", f"question {number}: {asked['question']}"]
        lines += [answer_line("base ", asked["base"]), answer_line("tuned", asked["tuned"])]
    lines += ["", portal]
    return "\n".join(lines)


def answer_line(label: str, text: str) -> str:
    """One model's answer on one line."""
    return f"  {label}  {textwrap.shorten(' '.join(text.split()), 90, placeholder=' …') or '(nothing)'}"
