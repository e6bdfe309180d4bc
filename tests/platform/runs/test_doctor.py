"""The run doctor: which word a failure gets, which lines show it."""

from __future__ import annotations

import pytest

from clavier.runs.doctor import ADVICE, OF_CODE, OF_REASON, SIGNS, read_signs
from clavier.runs.states import EndReason

TRACEBACK = """\
INFO  step 10/900 | loss 2.1
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    main()
  File "train.py", line 2, in main
    {call}
{error}"""


def traceback(error: str, call: str = "model(batch)") -> list[str]:
    return TRACEBACK.format(error=error, call=call).splitlines()


@pytest.mark.parametrize(
    ("reason", "codes", "lines", "kind", "shown"),
    [
        (EndReason.OUT_OF_MEMORY, [], ["step 1"], "out_of_memory", "step 1"),
        (EndReason.TIME_LIMIT, [], ["step 1"], "time_limit", "step 1"),
        (EndReason.EXIT_NONZERO, ["diverged"], ["loss is nan at step 7"], "diverged", "step 7"),
        (EndReason.EXIT_NONZERO, ["bad_row"], ["line 3: no text"], "bad_data", "line 3"),
        (EndReason.EXIT_NONZERO, [], traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
         "gpu_out_of_memory", "2 GiB"),
        (EndReason.EXIT_NONZERO, [], traceback("OSError: [Errno 28] No space left on device"), "disk_full", "Errno 28"),
        (EndReason.EXIT_NONZERO, [], traceback("ModuleNotFoundError: No module named 'deepspeed'"),
         "missing_module", "deepspeed"),
        (EndReason.EXIT_NONZERO, [], traceback("FileNotFoundError: [Errno 2] No such file: '/data/x'"),
         "missing_file", "/data/x"),
        (EndReason.EXIT_NONZERO, [], traceback("PermissionError: [Errno 13] Permission denied: '/etc/x'"),
         "no_permission", "/etc/x"),
        (EndReason.EXIT_NONZERO, [], traceback("requests.exceptions.ConnectionError: MaxRetryError"),
         "no_network", "MaxRetryError"),
        (EndReason.EXIT_NONZERO, [], traceback("ValueError: shapes do not match"), "user_code", "shapes"),
        (EndReason.EXIT_NONZERO, [], ["bye"], "unknown", "bye"),
        (EndReason.EXIT_NONZERO, [], [], "unknown", ""),
        (EndReason.EXECUTOR_LOST, [], ["step 4"], "infrastructure", "step 4"),
    ],
)  # fmt: skip
def test_a_failure_gets_its_word_and_the_lines_that_show_it(
    reason: EndReason, codes: list[str], lines: list[str], kind: str, shown: str
) -> None:
    found = read_signs(reason, codes, lines)
    assert found.kind == kind
    assert shown in "\n".join(found.evidence)
    assert found.advice == ADVICE[kind]


def test_what_the_platform_saw_outweighs_what_the_log_looks_like() -> None:
    assert read_signs(EndReason.TIME_LIMIT, [], traceback("MemoryError")).kind == "time_limit"


STEPS = [f"INFO  step {number} | loss 2.1" for number in range(100)]
CUDA = "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.parametrize(
    ("lines", "kind", "shown"),
    [
        (["a.txt: No such file or directory", *STEPS, *traceback("ValueError: my mistake")], "user_code", "my mistake"),
        (["No such file or directory", *STEPS, "ValueError: my mistake"], "user_code", "my mistake"),
        ([*traceback("FileNotFoundError: cache"), *STEPS, *traceback("KeyError: 'text'")], "bad_data", "'text'"),
        ([CUDA, "INFO  trying half the batch", *STEPS, *traceback("ValueError: x")], "user_code", "ValueError"),
        ([CUDA, "INFO  rank 0 ends", *traceback("RuntimeError: step failed")], "gpu_out_of_memory", "2 GiB"),
        ([*traceback("FileNotFoundError: /data/x"), "", "During handling of the above exception, another one occurred:",
          "", *traceback("RuntimeError: no data")], "missing_file", "/data/x"),
        ([*traceback("ModuleNotFoundError: No module named 'flash'"), *traceback(
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ")], "missing_module", "flash"),
        ([*traceback("ValueError: x"), *traceback("torch.ChildFailedError: ")], "user_code", "ValueError: x"),
        (["{'loss': 2.3, 'epoch': 0.1}", "{'loss': nan, 'grad_norm': nan}", *traceback("ValueError: bad logits")],
         "diverged", "nan"),
        (["step 3: loss=nan", "AssertionError"], "diverged", "loss=nan"),
        (["{'train_loss': 'inf'}", "bye"], "diverged", "inf"),
        (["loss information: 2.1", "no loss: infinite patience"], "unknown", "patience"),
        (["PermissionError: /x", *STEPS], "no_permission", "/x"),
    ],
)  # fmt: skip
def test_the_end_of_a_log_says_more_than_its_beginning(lines: list[str], kind: str, shown: str) -> None:
    found = read_signs(EndReason.EXIT_NONZERO, [], lines)
    assert found.kind == kind
    assert shown in "\n".join(found.evidence)


def test_what_is_known_already_is_shown_by_its_own_line() -> None:
    lines = [
        "OSError: [Errno 28] No space left on device",
        *STEPS,
        *traceback("RuntimeError: PytorchStreamWriter failed"),
    ]
    assert "Errno 28" in "\n".join(read_signs(EndReason.STORAGE_QUOTA, [], lines).evidence)


def test_evidence_is_short_even_of_an_endless_log() -> None:
    found = read_signs(EndReason.EXIT_NONZERO, [], ["x" * 10_000] * 5000)
    assert len(found.evidence) <= 12
    assert max(map(len, found.evidence)) <= 400


def test_every_word_that_can_come_out_has_advice() -> None:
    assert {*OF_REASON.values(), *OF_CODE.values(), *(kind for kind, _ in SIGNS), "unknown"} == set(ADVICE)
