"""Libraries that others import wherever they are installed, kept away from programs that have no use for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Of torch's shared compilation cache, and of accelerate's questions about a cloud.
CLIENTS = ("redis", "boto3")
#: PEFT imports it to see whether a base could be quantized: 50 MiB and 1.3 s of a CPU.
QUANTIZER = "bitsandbytes"


@contextmanager
def spared(*names: str) -> Iterator[None]:
    """Within the block libraries that nobody has imported yet count as not installed; after it they are there again."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be found, says importlib
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if QUANTIZER in hidden:
            _forget_answers()


def _forget_answers() -> None:
    """What was asked within the block is asked anew."""
    for module, questions in (
        ("peft.import_utils", ("is_bnb_available", "is_bnb_4bit_available")),
        ("transformers.utils.import_utils", ("is_bitsandbytes_available",)),
    ):
        for name in questions:
            if module in sys.modules:
                getattr(sys.modules[module], name).cache_clear()
