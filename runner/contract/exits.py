"""Exit codes of the platform's own programs; any other code is the user's program's business."""

from __future__ import annotations

OK = 0
#: The input is at fault (data, configuration, model files). The last ``error`` event in metrics.jsonl says what.
USER_ERROR = 64
#: Training diverged: the loss is not a number, or the weights are not.
DIVERGED = 65
#: The server's token ids differ from the trainer's renderer.
RENDER_MISMATCH = 66
#: A remote hub or host could not be reached.
UNREACHABLE = 69
