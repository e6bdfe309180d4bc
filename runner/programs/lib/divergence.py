"""The end of a training whose numbers are none: every process ends alike, and the first one names the rows at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from runner.contract import exits
from runner.programs.lib import distributed
from runner.programs.lib.events import ProgramError

Drawn = TypeVar("Drawn")

#: How torch refuses to draw a token where a logit is no number.
NO_PROBABILITIES = "probability tensor contains"
ROWS_SHOWN = 8


def diverged(what: str, rows: Iterable[str], knobs: Mapping[str, Any]) -> ProgramError:
    """The error that names rows: each once, the first of them, and how many more."""
    named = list(dict.fromkeys(rows))
    more = f" and {len(named) - ROWS_SHOWN} more" if len(named) > ROWS_SHOWN else ""
    advice = f"lower learning_rate (now {knobs['learning_rate']:g}) or look at these rows: "
    return ProgramError(
        "diverged", f"{what}; {advice}{', '.join(named[:ROWS_SHOWN])}{more}", "learning_rate", exits.DIVERGED
    )


def draw_together(draw: Callable[[], Drawn], rows: Sequence[str], step: int, knobs: Mapping[str, Any]) -> Drawn:
    """What ``draw`` answers to rows; all processes come here.

    Raises ProgramError in each of them where the probabilities of one are no numbers.
    """
    drawn, broken = list[Drawn](), list[str]()
    try:
        drawn.append(draw())
    except RuntimeError as error:
        if NO_PROBABILITIES not in str(error):
            raise
        broken = list(rows)
    broken = distributed.shares_together(broken)
    if broken:
        what = f"no answer can be drawn at step {step}: the probabilities are no numbers"
        raise diverged(what, broken, knobs)
    return drawn[0]
