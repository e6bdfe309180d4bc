"""What an uploader says that a version is of its data set: a split, and the subset that it belongs to."""

from __future__ import annotations

from clavier.core.errors import Invalid, quoted
from clavier.core.names import parse_display_name
from datasets_app.steps import SPLITS

DEFAULT_SUBSET = "Default"


def checked_labels(split: str = "", subset: str = "") -> dict[str, str]:
    """``{split, subset}``; without a split empty, without a subset ``Default``. Raises Invalid."""
    if split and split not in SPLITS:
        raise Invalid(
            f"split {quoted(split)} is none of {', '.join(SPLITS)}; leave it out where the rows are of no split.",
            code="not_a_choice",
            field="split",
        )
    return {"split": split, "subset": parse_display_name(subset or DEFAULT_SUBSET, field="subset")}
